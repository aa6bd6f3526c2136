"""What callers rely on beside the numbers: errors that name things, a cheap import, little memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.kernel_ops.bench_divergence import eager as usual_lines_of_two
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from understudy_kernels import divergence, score

HIDDEN, WEIGHT, TARGETS = torch.zeros(3, 8), torch.zeros(20, 8), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((HIDDEN[0], WEIGHT, TARGETS), "hidden is [8]: two dimensions"),
        ((HIDDEN, WEIGHT[:, :4].contiguous(), TARGETS), "hidden is [3, 8] and weight [20, 4]"),
        ((HIDDEN, WEIGHT.half(), TARGETS), "weight is torch.float16 on cpu, hidden torch.float32 on cpu"),
        ((HIDDEN.double(), WEIGHT.double(), TARGETS), "hidden is torch.float64, not one of"),
        ((HIDDEN, WEIGHT.T.contiguous().T, TARGETS), "weight has strides (1, 20)"),
        ((HIDDEN, WEIGHT, TARGETS.int()), "targets are torch.int32 [3], not torch.int64 [3]"),
        ((HIDDEN, WEIGHT, TARGETS[:2]), "targets are torch.int64 [2], not torch.int64 [3]"),
        ((HIDDEN.to("meta"), WEIGHT.to("meta"), TARGETS.to("meta")), "only cpu and cuda"),
    ],
)
def test_wrong_tensors_are_named(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        score(*arguments)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocab_size": 21}, "vocab_size 21 is not in 1..20"),
        ({"vocab_size": 0}, "vocab_size 0 is not in 1..20"),
        ({"bias": torch.zeros(19)}, "bias is [19], not [at least 20]"),
        ({"bias": torch.zeros(20).long()}, "bias is torch.int64"),
        ({"softcap": 0.0}, "softcap 0.0 is not above 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        score(HIDDEN, WEIGHT, TARGETS, **options)
    assert words in str(raised.value)


def test_sides_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="p has 3 tokens and q 2"):
        divergence(HIDDEN, WEIGHT, HIDDEN[:2], WEIGHT, TARGETS)


def test_importing_takes_neither_triton_nor_an_engine() -> None:
    code = "import sys, understudy_kernels; print(*{'triton', 'vllm', 'ray', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def allocated_bytes(run: Callable[[], object]) -> int:
    """The most that was allocated at once beyond what was there before, by torch's own accounting."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = run()
    del result
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def usual_lines(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """What one writes without these operations: everything of [num_tokens, vocab_size] at once."""
    logprobs = torch.log_softmax((hidden @ weight.T).float(), -1)
    logprob = logprobs.gather(1, targets[:, None])
    rank = 1 + (logprobs > logprob).sum(-1)
    return logprob, rank, logprobs.argmax(-1), -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cpu_path_takes_little_memory(dtype: torch.dtype) -> None:
    """At 512 tokens and a vocabulary of 32000: a fiftieth of the usual lines for one model, less of those for two."""
    hidden, weight = torch.randn(512, 512).to(dtype), torch.randn(32000, 512).to(dtype)
    targets, other = torch.randint(32000, (512,)), torch.randn(32000, 512).to(dtype)
    usual = allocated_bytes(lambda: usual_lines(hidden, weight, targets))
    usual_of_two = allocated_bytes(lambda: usual_lines_of_two((hidden, weight), (hidden, other), targets))
    assert usual >= 512 * 32000 * 8
    assert usual_of_two >= 512 * 32000 * 24
    of_score = allocated_bytes(lambda: score(hidden, weight, targets))
    of_divergence = allocated_bytes(lambda: divergence(hidden, weight, hidden, other, targets))
    with_js = allocated_bytes(lambda: divergence(hidden, weight, hidden, other, targets, js=True))
    print(usual, of_score, usual_of_two, of_divergence, with_js)
    assert 50 * of_score <= usual
    assert 80 * of_divergence <= usual_of_two
    assert 70 * with_js <= usual_of_two
