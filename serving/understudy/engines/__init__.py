"""Engines: what answers out of sight, and where it runs. base.py is the contract, placements.py starts them."""
