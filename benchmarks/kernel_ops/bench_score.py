"""score: logprob, rank, top-1, logsumexp and entropy of given tokens, from hidden states and a head.

make bench-kernels                                     # this and divergence, results under benchmarks/results/
.venv/bin/python -m benchmarks.kernel_ops.bench_score --regimes 512,1024,32000,bfloat16 --without torch.compile

ours, rounded         rounding the product to the inputs' dtype as a model's own head does: what eager, compiled
                      and vLLM compute from 16-bit inputs, and what the server scores with
ours, ours again      score(): Triton on a GPU, tiled PyTorch on the CPU; the second is the noise
eager                 what one writes: logits, float32 log_softmax, gather, count, entropy
eager, wide           the same with inputs widened to float32 first: as exact as ours (16-bit inputs on the CPU only)
torch.compile         eager, compiled
chunked               our tiled PyTorch on a GPU, in tiles of up to 256 MiB
Liger cross entropy   liger_fused_linear_cross_entropy, forward; logprobs only
vLLM                  its prompt_logprobs: log_softmax, gather_logprobs
logits given          score_logits() where logits are there already; and eager from there
bare product          hidden @ weight.T into a buffer, nothing else
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_ops.arms import chunked, compiled, liger, random_inputs, run
from benchmarks.kernel_ops.measure import Absent, Arm, Regime
from understudy_kernels import score, score_logits
from understudy_kernels.reference.score import score as tiled
from understudy_kernels.source import Head


def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return eager_logits(hidden @ weight.T, targets)


def eager_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logits = logits.float()
    logprobs = torch.log_softmax(logits, -1)
    logprob = logprobs.gather(1, targets[:, None])
    rank = 1 + (logprobs > logprob).sum(-1)
    largest = logprobs.max(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprob[:, 0], rank, largest.indices, largest.values, logits.logsumexp(-1), entropy


def vllm_arm(hidden: Tensor, weight: Tensor, targets: Tensor) -> Arm | Absent:
    """What vLLM computes for prompt_logprobs=0, from hidden states."""
    try:
        sampler: Any = importlib.import_module("vllm.v1.sample.sampler").Sampler
    except ImportError:
        return Absent("vllm is not installed")

    def scored() -> Any:
        return sampler.gather_logprobs(sampler.compute_logprobs(hidden @ weight.T), 0, targets)

    return Arm(scored, lambda found: found.logprobs[:, 0])


def liger_arm(hidden: Tensor, weight: Tensor, targets: Tensor) -> Arm | Absent:
    function = liger("liger_fused_linear_cross_entropy")
    if isinstance(function, Absent):
        return function
    return Arm(lambda: function(hidden, weight, targets, reduction="none"), lambda found: -found)


def make_arms(regime: Regime, device: torch.device) -> dict[str, Arm | Absent]:
    ((hidden, weight),), targets = random_inputs(regime, device, 1)
    inputs = (hidden, weight, targets)
    logits = hidden @ weight.T
    ours = Arm(lambda: score(*inputs), lambda found: found.logprob)
    on_cpu, wide = device.type == "cpu", hidden.dtype == torch.float32
    head = Head(hidden, weight, regime.vocab_size)
    first = lambda found: found[0]  # noqa: E731
    return {
        "ours": ours,
        "ours again": ours,
        "ours, rounded": Absent("inputs are float32: nothing to round")
        if wide
        else Arm(lambda: score(*inputs, round_logits=True), lambda found: found.logprob),
        "eager": Arm(lambda: eager(*inputs), first),
        "eager, wide": Absent("inputs are float32 already")
        if wide
        else Arm(lambda: eager(hidden.float(), weight.float(), targets), first)
        if on_cpu
        else Absent("float32 products miss the tensor cores"),
        "torch.compile": compiled(eager, *inputs),
        "chunked": chunked(lambda: tiled(head, targets), lambda found: found.logprob, device),
        "Liger cross entropy": liger_arm(*inputs),
        "vLLM": vllm_arm(*inputs),
        "logits given": Arm(lambda: score_logits(logits, targets)),
        "logits given, eager": Arm(lambda: eager_logits(logits, targets)),
        "bare product": Arm(lambda: torch.mm(hidden, weight.T, out=logits)),
    }


if __name__ == "__main__":
    run("score", __doc__, make_arms, "bare product", num_heads=1)
