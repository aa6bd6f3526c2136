"""The meter: what each model takes in time, memory, energy and money.

gaps.py         the gaps of a stream, as a histogram that is small and can be added up
traffic.py      what an engine did, counted from its own statistics
"""
