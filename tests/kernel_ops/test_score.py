"""score on the CPU: plain PyTorch, tile by tile, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from tests.kernel_ops.contract import CASES, DTYPES, Case, check_score, check_score_logits, make_inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_score(case: Case, dtype: torch.dtype) -> None:
    check_score(make_inputs(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_score_logits(case: Case, dtype: torch.dtype) -> None:
    check_score_logits(make_inputs(case, dtype), dtype)
