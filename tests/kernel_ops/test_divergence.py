"""divergence on the CPU: plain PyTorch, tile by tile, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from tests.kernel_ops.contract import CASES, DTYPES, Case, check_divergence, check_divergence_logits, make_inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_divergence(case: Case, dtype: torch.dtype) -> None:
    check_divergence(make_inputs(case, dtype), js=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_divergence_logits(case: Case, dtype: torch.dtype) -> None:
    check_divergence_logits(make_inputs(case, dtype), dtype, js=False)
