"""score against the float64 oracle: plain PyTorch on the CPU, the kernels interpreted, the kernels on a GPU."""

from __future__ import annotations

import pytest
import torch
from tests.kernel_ops.contract import (
    CASES,
    DTYPES,
    INTERPRETED,
    LARGE,
    Case,
    check_score,
    check_score_logits,
    make_inputs,
    watching,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_cpu(case: Case, dtype: torch.dtype, tiny_tiles: None) -> None:
    inputs = make_inputs(case, dtype)
    check_score(inputs)
    check_score_logits(inputs, dtype)


def test_on_the_cpu_in_tiles_of_their_usual_size() -> None:
    check_score(make_inputs(Case(600, 24, 1500, padding=3), torch.bfloat16))


@pytest.mark.interpreted
@pytest.mark.parametrize(("case", "dtype"), INTERPRETED, ids=str)
def test_interpreted(case: Case, dtype: torch.dtype, poisoned: None, few_sms: None) -> None:
    inputs = make_inputs(case, dtype)
    with watching() as launches:
        check_score(inputs)
        check_score_logits(inputs, dtype)
    if case.num_tokens == 0:
        assert not launches
        return
    assert [launch.kernel for launch in launches] == ["target_kernel", "sweep_kernel", "merge_kernel"] * 2
    head, logits = launches[1], launches[4]
    assert head.flags["IS_HEAD"]
    assert not logits.flags["IS_HEAD"]
    assert head.flags["HAS_BIAS"] == case.bias
    assert head.flags["HAS_SOFTCAP"] == (case.softcap is not None)
    assert head.flags["EVEN"] == (case.hidden_size % head.flags["BLOCK_HIDDEN"] == 0)
    assert head.flags["WIDEN"] == (dtype == torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_on_a_gpu(case: Case, dtype: torch.dtype, poisoned: None) -> None:
    inputs = make_inputs(case, dtype)
    check_score(inputs, "cuda")
    check_score_logits(inputs, dtype, "cuda")
