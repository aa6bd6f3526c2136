"""divergence against the float64 oracle: plain PyTorch on the CPU, the kernels interpreted, the kernels on a GPU."""

from __future__ import annotations

import pytest
import torch
from tests.kernel_ops.contract import (
    CASES,
    DTYPES,
    INTERPRETED,
    LARGE,
    Case,
    check_divergence,
    check_divergence_logits,
    make_inputs,
    watching,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_cpu(case: Case, dtype: torch.dtype, tiny_tiles: None) -> None:
    inputs = make_inputs(case, dtype)
    check_divergence(inputs, js=True)
    check_divergence_logits(inputs, dtype, js=False)


def test_on_the_cpu_in_tiles_of_their_usual_size() -> None:
    check_divergence(make_inputs(Case(600, 24, 1500, hidden_size_q=40), torch.bfloat16), js=True)


@pytest.mark.interpreted
@pytest.mark.parametrize(("case", "dtype"), INTERPRETED, ids=str)
def test_interpreted(case: Case, dtype: torch.dtype, poisoned: None, few_sms: None) -> None:
    inputs = make_inputs(case, dtype)
    with watching() as launches:
        check_divergence(inputs, js=True)
        check_divergence_logits(inputs, dtype, js=False)
    if case.num_tokens == 0:
        assert not launches
        return
    kernels = [launch.kernel for launch in launches]
    assert kernels == ["sweep_kernel", "merge_kernel", "distance_kernel", "sweep_kernel", "merge_kernel"]
    for head in (launches[0], launches[2]):
        assert head.flags["IS_HEAD_P"]
        assert head.flags["IS_HEAD_Q"]
        assert head.flags["TIED"] == case.tied
        assert head.flags["HAS_BIAS_P"] == head.flags["HAS_BIAS_Q"] == case.bias
        assert head.flags["HAS_SOFTCAP_P"] == (case.softcap is not None)
        assert head.flags["EVEN_P"] == (case.hidden_size % head.flags["BLOCK_HIDDEN"] == 0)
        assert head.flags["WIDEN"] == (dtype == torch.bfloat16)
    assert not launches[3].flags["IS_HEAD_P"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_on_a_gpu(case: Case, dtype: torch.dtype, poisoned: None) -> None:
    inputs = make_inputs(case, dtype)
    check_divergence(inputs, js=True, device="cuda")
    check_divergence_logits(inputs, dtype, js=True, device="cuda")
