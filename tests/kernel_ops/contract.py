"""One contract for every way an operation can run: reference on the CPU, kernels under the interpreter or on a device.

Inputs are fresh random numbers each time; a failure prints the seed, and UNDERSTUDY_SEED=... runs it again. Results
are compared with the float64 oracle, computed from the very same rounded inputs, within BOUNDS.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from tests.kernel_ops import oracle
from tests.kernel_ops.oracle import Side
from torch import Tensor

from understudy_kernels import Divergences, Scores, divergence, divergence_logits, score, score_logits
from understudy_kernels.plan import Device

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Absolute, in nats, while no logit is beyond LARGEST; in proportion where one is, as float32's steps are.
BOUNDS = {
    "logprob": 1e-5,
    "max_logprob": 1e-5,
    "logsumexp": 1e-5,
    "entropy": 1e-5,
    "kl_pq": 1e-5,
    "kl_qp": 1e-5,
    "entropy_p": 1e-5,
    "entropy_q": 1e-5,
    "logprob_p": 1e-5,
    "logprob_q": 1e-5,
    "hellinger_squared": 2e-6,  # 1 - sum sqrt(p q) cancels: hellinger itself is only good to 1.5e-3 near 0
    "js": 2e-6,
    "total_variation": 5e-6,
}
LARGEST = 32.0
# Beyond it: what the products' own rounding may add up to. A KL weighs the errors of two products; the largest of 3,000
# draws with logits of up to 120 was 2.3 times what one bound in proportion would allow, of anything else 0.9 times.
BEYOND = {"kl_pq": 6.0, "kl_qp": 6.0}
BEYOND_OTHERS = 2.0
RELATIVE = 1e-6  # of the value itself: a KL of 50 has float32 steps of 4e-6


@dataclass(frozen=True)
class Case:
    """A shape, and what is special about it."""

    num_tokens: int
    hidden_size: int
    vocab_size: int
    hidden_size_q: int | None = None
    padding: int = 0
    tied: bool = False
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    spread: float = 3.0  # the logits' standard deviation
    distance: float = 0.1  # of q from p, in standard deviations

    def __str__(self) -> str:
        shown = [f"T{self.num_tokens}-H{self.hidden_size}-V{self.vocab_size}"]
        shown += [
            f"{field.name}={value}"
            for field in fields(self)[3:]
            if (value := getattr(self, field.name)) != field.default
        ]
        return "-".join(shown)


CASES = (
    Case(0, 16, 40),
    Case(1, 16, 40),
    Case(1, 64, 1031),
    Case(5, 24, 1),
    Case(7, 33, 257),
    Case(21, 48, 699, padding=49),
    Case(33, 40, 197, hidden_size_q=56),
    Case(16, 32, 512, tied=True),
    Case(19, 32, 300, bias=True, softcap=20.0, scale=0.5),
    Case(18, 32, 130, bias=True, softcap=20.0, tied=True),
    Case(9, 32, 300, spread=30.0),
    Case(9, 32, 300, distance=0.0),
    Case(9, 32, 300, distance=3.0),
)
INTERPRETED = (
    *((case, torch.float32) for case in CASES),
    (Case(130, 16, 70), torch.float32),
    *((case, dtype) for case in (CASES[3], CASES[4], CASES[7], CASES[9]) for dtype in (torch.bfloat16, torch.float16)),
)
INTERPRETED_DEVICE = Device(num_sms=2)
LARGE = (  # for a GPU
    Case(1, 4096, 128256),
    Case(17, 2048, 151936, padding=128),
    Case(700, 4096, 32003),
    Case(260, 1000, 50257, hidden_size_q=1600),
    Case(512, 3072, 128256, tied=True),
)


@dataclass(frozen=True)
class Inputs:
    p: Side
    q: Side
    targets: Tensor
    vocab_size: int


def seed() -> int:
    """Printed, so that pytest shows it with a failure."""
    found = int(os.environ.get("UNDERSTUDY_SEED", secrets.randbits(31)))
    print(f"UNDERSTUDY_SEED={found}")
    return found


def make_inputs(case: Case, dtype: torch.dtype) -> Inputs:
    """Two models whose hidden states and heads are near each other; on the CPU."""
    g = torch.Generator().manual_seed(seed())
    num_rows = case.vocab_size + case.padding

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def side(hidden: Tensor, weight: Tensor) -> Side:
        bias = normal(num_rows) if case.bias else None
        return Side(hidden.to(dtype), weight.to(dtype), bias, case.scale, case.softcap)

    hidden, weight = normal(case.num_tokens, case.hidden_size), normal(num_rows, case.hidden_size)
    weight *= case.spread / case.hidden_size**0.5
    p = side(hidden, weight)
    extra = (case.hidden_size_q or case.hidden_size) - case.hidden_size
    hidden_q = torch.cat((hidden, normal(case.num_tokens, extra)), 1)
    weight_q = torch.cat((weight, normal(num_rows, extra) * case.distance * case.spread / case.hidden_size**0.5), 1)
    hidden_q = hidden_q + case.distance * normal(*hidden_q.shape)
    q = side(hidden_q, weight_q)
    if case.tied:
        q = Side(q.hidden, p.weight, p.bias, case.scale, case.softcap)
    targets = torch.randint(case.vocab_size, (case.num_tokens,), generator=g)
    if case.num_tokens > 3:
        targets[0], targets[1] = -1, case.vocab_size  # tokens that the vocabulary does not have
        logits = p.logits(case.vocab_size)
        targets[2], targets[3] = logits[2].argmax(), logits[3].argmin()
    return Inputs(p, q, targets, case.vocab_size)


@dataclass(frozen=True)
class Launch:
    """One kernel launched with these compile-time flags on this grid."""

    kernel: str
    flags: dict[str, Any]
    grid: tuple[int, ...]


@contextmanager
def watching() -> Iterator[list[Launch]]:
    """The launches of the block, compiled or interpreted; none where plain PyTorch ran."""
    from triton.runtime.jit import KernelInterface

    launches: list[Launch] = []
    launch = KernelInterface.__getitem__

    def watch(kernel: Any, grid: Any) -> Any:
        def run(*arguments: Any, **flags: Any) -> Any:
            launches.append(Launch(kernel.__name__, flags, grid))
            return launch(kernel, grid)(*arguments, **flags)

        return run

    KernelInterface.__getitem__ = watch
    try:
        yield launches
    finally:
        KernelInterface.__getitem__ = launch


def check_score(inputs: Inputs, device: str = "cpu") -> None:
    p, targets = inputs.p.to(device), inputs.targets.to(device)
    found = score(
        p.hidden, p.weight, targets, bias=p.bias, scale=p.scale, softcap=p.softcap, vocab_size=inputs.vocab_size
    )
    logits = inputs.p.logits(inputs.vocab_size)
    compare_scores(found, logits, inputs.targets)


def check_score_logits(inputs: Inputs, dtype: torch.dtype, device: str = "cpu") -> None:
    logits = inputs.p.logits(inputs.p.weight.shape[0]).to(dtype)
    found = score_logits(logits.to(device), inputs.targets.to(device), vocab_size=inputs.vocab_size)
    compare_scores(found, logits[:, : inputs.vocab_size].double(), inputs.targets, exact=True)


def check_divergence(inputs: Inputs, *, js: bool, device: str = "cpu") -> None:
    p, q = inputs.p.to(device), inputs.q.to(device)
    if inputs.q.weight is inputs.p.weight:
        q = Side(q.hidden, p.weight, p.bias, q.scale, q.softcap)
    found = divergence(
        p.hidden,
        p.weight,
        q.hidden,
        q.weight,
        inputs.targets.to(device),
        bias_p=p.bias,
        bias_q=q.bias,
        scale_p=p.scale,
        scale_q=q.scale,
        softcap_p=p.softcap,
        softcap_q=q.softcap,
        vocab_size=inputs.vocab_size,
        js=js,
    )
    compare_divergences(found, inputs.p.logits(inputs.vocab_size), inputs.q.logits(inputs.vocab_size), inputs.targets)
    assert (found.js is not None) == (found.total_variation is not None) == js


def check_divergence_logits(inputs: Inputs, dtype: torch.dtype, *, js: bool, device: str = "cpu") -> None:
    a, b = (side.logits(side.weight.shape[0]).to(dtype) for side in (inputs.p, inputs.q))
    found = divergence_logits(
        a.to(device), b.to(device), inputs.targets.to(device), vocab_size=inputs.vocab_size, js=js
    )
    a, b = (logits[:, : inputs.vocab_size].double() for logits in (a, b))
    compare_divergences(found, a, b, inputs.targets)


def compare_scores(found: Scores, logits: Tensor, targets: Tensor, *, exact: bool = False) -> None:
    """With the oracle's. Ranks and argmax may differ only where logits are closer than they can be computed."""
    expected = oracle.score(logits, targets)
    for name in ("logprob", "max_logprob", "logsumexp", "entropy"):
        close(name, getattr(found, name), expected[name], logits)
    slack = 0.0 if exact else slack_of(logits)
    check_argmax(found.argmax, logits, slack)
    inside = (targets >= 0) & (targets < logits.shape[1])
    target = logits.gather(1, targets.where(inside, 0)[:, None])
    least = 1 + (logits > target + slack).sum(-1)
    most = 1 + (logits > target - slack).sum(-1) - (1 if slack else 0)
    rank = found.rank.cpu()
    assert found.rank.dtype == torch.int64
    assert bool(((rank >= least) & (rank <= torch.maximum(least, most)))[inside].all()), "rank"
    assert bool((rank == logits.shape[1] + 1)[~inside].all()), "rank of a target outside the vocabulary"


def compare_divergences(found: Divergences, a: Tensor, b: Tensor, targets: Tensor) -> None:
    expected = oracle.divergence(a, b, targets)
    larger = torch.maximum(a.abs(), b.abs())
    for name in ("kl_pq", "kl_qp", "entropy_p", "entropy_q", "logprob_p", "logprob_q", "js", "total_variation"):
        if getattr(found, name) is not None:
            close(name, getattr(found, name), expected[name], larger)
    close("hellinger_squared", found.hellinger**2, expected["hellinger"] ** 2, larger)
    check_argmax(found.argmax_p, a, slack_of(a))
    check_argmax(found.argmax_q, b, slack_of(b))
    assert found.agreement.dtype == torch.bool
    assert torch.equal(found.agreement, found.argmax_p == found.argmax_q)


def slack_of(logits: Tensor) -> float:
    """How far a float32 sum may put a logit from its float64 value."""
    finite = logits[logits.isfinite()]
    return 2e-6 * max(1.0, float(finite.abs().max())) if finite.numel() else 0.0


def check_argmax(argmax: Tensor, logits: Tensor, slack: float) -> None:
    assert argmax.dtype == torch.int64
    if not argmax.numel():
        return
    chosen = logits.gather(1, argmax.cpu()[:, None])[:, 0]
    assert bool((chosen >= logits.amax(-1) - slack).all()), "argmax"
    if not slack:
        assert torch.equal(argmax.cpu(), logits.argmax(-1)), "argmax: of equal logits the lowest id"


def close(name: str, found: Tensor, expected: Tensor, logits: Tensor) -> None:
    """Within the bound; infinities and NaN in the same places."""
    assert found.dtype == torch.float32, name
    assert found.shape == expected.shape, name
    finite = logits[logits.isfinite()].abs()
    times = float(finite.max()) / LARGEST if finite.numel() else 1.0
    beyond = times * BEYOND.get(name, BEYOND_OTHERS) if times > 1.0 else 1.0
    torch.testing.assert_close(
        found.cpu().double(), expected, rtol=RELATIVE, atol=BOUNDS[name] * beyond, equal_nan=True, msg=report(name)
    )


def report(name: str) -> Any:
    return lambda message: f"{name}: {message}"
