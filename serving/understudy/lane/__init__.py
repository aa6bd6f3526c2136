"""The lane: the bounded path on which shadow work waits and runs, out of the champion's way."""
