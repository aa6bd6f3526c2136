"""divergence: KL both ways, entropies, logprobs, agreement and Hellinger of two models, from hidden states and heads.

make bench-kernels                                     # this and score, results under benchmarks/results/
.venv/bin/python -m benchmarks.kernel_ops.bench_divergence --regimes 8192,4096,128256,bfloat16

ours, ours again      divergence(): Triton on a GPU, tiled PyTorch on the CPU; the second is the noise
ours, rounded         the same, rounding the products to the inputs' dtype as the models' own heads do (as eager does)
ours, with js         with the second sweep
ours, tied            both models with the first one's head (another result, so no deviation)
eager                 what one writes: both logits, float32 log_softmax, sums
eager, wide           the same with inputs widened to float32 first: as exact as ours (16-bit inputs on the CPU only)
torch.compile         eager, compiled
chunked               our tiled PyTorch on a GPU, in tiles of up to 256 MiB
Liger JSD             liger_fused_linear_jsd, forward (which computes the gradients too); one number for all tokens
logits given          divergence_logits() where logits are there already; and eager from there
two bare products     hidden @ weight.T of both models into buffers, nothing else
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernel_ops.arms import chunked, compiled, liger, random_inputs, run
from benchmarks.kernel_ops.measure import Absent, Arm, Regime
from understudy_kernels import divergence, divergence_logits
from understudy_kernels.reference.divergence import divergence as tiled
from understudy_kernels.source import Head


def eager(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], targets: Tensor) -> tuple[Tensor, ...]:
    return eager_logits(p[0] @ p[1].T, q[0] @ q[1].T, targets)


def widened(side: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return side[0].float(), side[1].float()


def eager_logits(a: Tensor, b: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    log_p, log_q = torch.log_softmax(a.float(), -1), torch.log_softmax(b.float(), -1)
    p, q = log_p.exp(), log_q.exp()
    difference = log_p - log_q
    return (
        (p * difference).sum(-1),
        -(q * difference).sum(-1),
        -(p * log_p).sum(-1),
        -(q * log_q).sum(-1),
        log_p.gather(1, targets[:, None])[:, 0],
        log_q.gather(1, targets[:, None])[:, 0],
        log_p.argmax(-1) == log_q.argmax(-1),
        (1 - (p * q).sqrt().sum(-1)).clamp(min=0).sqrt(),
    )


def liger_arm(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Arm | Absent:
    function = liger("liger_fused_linear_jsd")
    if isinstance(function, Absent):
        return function
    return Arm(lambda: function(hidden_p, weight_p, hidden_q, weight_q))


def make_arms(regime: Regime, device: torch.device) -> dict[str, Arm | Absent]:
    models, targets = random_inputs(regime, device, 2)
    (hidden_p, weight_p), (hidden_q, weight_q) = models
    inputs = (hidden_p, weight_p, hidden_q, weight_q, targets)
    a, b = hidden_p @ weight_p.T, hidden_q @ weight_q.T
    ours = Arm(lambda: divergence(*inputs), lambda found: found.kl_pq)
    on_cpu, wide = device.type == "cpu", hidden_p.dtype == torch.float32
    p, q = Head(hidden_p, weight_p, regime.vocab_size), Head(hidden_q, weight_q, regime.vocab_size)
    first = lambda found: found[0]  # noqa: E731

    def products() -> None:
        torch.mm(hidden_p, weight_p.T, out=a)
        torch.mm(hidden_q, weight_q.T, out=b)

    return {
        "ours": ours,
        "ours again": ours,
        "ours, rounded": Absent("inputs are float32: nothing to round")
        if wide
        else Arm(lambda: divergence(*inputs, round_logits=True), lambda found: found.kl_pq),
        "ours, with js": Arm(lambda: divergence(*inputs, js=True), lambda found: found.kl_pq),
        "ours, tied": Arm(lambda: divergence(hidden_p, weight_p, hidden_q, weight_p, targets)),
        "eager": Arm(lambda: eager(models[0], models[1], targets), first),
        "eager, wide": Absent("inputs are float32 already")
        if wide
        else Arm(lambda: eager(widened(models[0]), widened(models[1]), targets), first)
        if on_cpu
        else Absent("float32 products miss the tensor cores"),
        "torch.compile": compiled(eager, *models, targets),
        "chunked": chunked(lambda: tiled(p, q, targets, js=False), lambda found: found.kl_pq, device),
        "Liger JSD": liger_arm(hidden_p, weight_p, hidden_q, weight_q),
        "logits given": Arm(lambda: divergence_logits(a, b, targets)),
        "logits given, eager": Arm(lambda: eager_logits(a, b, targets)),
        "two bare products": Arm(products),
    }


if __name__ == "__main__":
    run("divergence", __doc__, make_arms, "two bare products", num_heads=2)
