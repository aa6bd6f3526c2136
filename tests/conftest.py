"""Shared by all tests: they hear Ctrl-C, and those that need a GPU are skipped, in plain words, where there is none."""

from __future__ import annotations

import signal

import pynvml
import pytest


def pytest_configure() -> None:
    """A shell starts what it puts in the background deaf to Ctrl-C, and servers would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def num_gpus() -> int:
    """How many NVIDIA GPUs this machine has; 0 where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the gpu tests as skipped where no GPU is."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests and num_gpus() == 0:
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="no GPU: skipped"))
