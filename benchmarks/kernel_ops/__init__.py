"""Benchmarks of the kernels, on whatever device is there."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is imported: its profiler announces every start and stop
