"""Infinities, NaN, huge numbers, ties, swapped sides and strides: on the CPU, interpreted and on a GPU."""

from __future__ import annotations

import pytest
from tests.kernel_ops.extremes import EXTREMES


@pytest.mark.parametrize("name", EXTREMES)
def test_on_the_cpu(name: str, tiny_tiles: None) -> None:
    EXTREMES[name]("cpu")


@pytest.mark.interpreted
@pytest.mark.parametrize("name", EXTREMES)
def test_interpreted(name: str, poisoned: None, few_sms: None) -> None:
    EXTREMES[name]("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXTREMES)
def test_on_a_gpu(name: str, poisoned: None) -> None:
    EXTREMES[name]("cuda")
