"""Benchmarks that others can re-run."""
