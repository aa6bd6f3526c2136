"""Tests marked `interpreted` run where Triton interprets, which a process decides before it imports Triton."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.kernel_ops.contract import INTERPRETED_DEVICE

from understudy_kernels.reference import tiles

IGNORED = "ignore:.* encountered in:RuntimeWarning"  # NumPy, in the interpreter, of masked rows and of infinities


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        if item.get_closest_marker("interpreted"):
            item.add_marker(pytest.mark.filterwarnings(IGNORED))
    interpreted = [item for item in items if item.get_closest_marker("interpreted")]
    if interpreted and not interpreting:
        config.hook.pytest_deselected(items=interpreted)
        items[:] = [item for item in items if item not in set(interpreted)]


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU path in many tiles of few rows and 64 tokens, which small inputs would not need."""
    monkeypatch.setattr(tiles, "TILE_BYTES", 1)
    monkeypatch.setattr(tiles, "MAX_ROWS", 32)


@pytest.fixture
def few_sms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans for a device so small that a program sweeps several blocks; for a large one, small inputs give it one."""
    from understudy_kernels.device import arguments

    monkeypatch.setattr(arguments, "device_of", lambda device: INTERPRETED_DEVICE)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds large nonsense, so that what a kernel does not write shows."""
    empty = torch.empty

    def poison(*shape: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*shape, **options)
        return tensor.fill_(
            1e33 if tensor.dtype.is_floating_point else 1 if tensor.dtype == torch.bool else 123_456_789
        )

    monkeypatch.setattr(torch, "empty", poison)
    yield
    monkeypatch.undo()
