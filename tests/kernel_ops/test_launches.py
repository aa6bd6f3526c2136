"""Every launch of whole calls compiles for an H100, which needs no GPU.

The launchers run on CPU tensors, and what they would launch goes through Triton's own binding of arguments, which turns
an integer of 1 into a constant (Triton's interpreter does not) and notes multiples of 16, then down to machine code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from understudy_kernels.plan import Device
from understudy_kernels.source import Head, Logits


class NoGpu:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> str:
        return "an H100 that is not there"

    def get_current_stream(self, device: str) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every launch is compiled as it would be on an H100, and not run."""
    from triton.runtime import driver
    from triton.runtime.jit import KernelInterface

    kernels: list[Any] = []

    def get(kernel: Any, grid: Any) -> Any:
        return lambda *arguments, **options: kernels.append(kernel.warmup(*arguments, grid=grid, **options))

    monkeypatch.setattr(KernelInterface, "__getitem__", get)
    monkeypatch.setattr(driver, "_active", NoGpu())
    return kernels


@dataclass(frozen=True)
class Call:
    """A call of every operation. ``ones``: integer arguments of score's merger that are 1, so constants."""

    num_tokens: int
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    ones: set[str]
    tied: bool = False
    everything: bool = False

    def head(self, weight: torch.Tensor | None = None) -> Head:
        def tensor(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=self.dtype)

        weight = tensor(self.vocab_size, self.hidden_size) if weight is None else weight
        hidden = tensor(self.num_tokens, self.hidden_size)
        if not self.everything:
            return Head(hidden, weight, self.vocab_size)
        return Head(hidden, weight, self.vocab_size, tensor(self.vocab_size), scale=1, softcap=30.0, rounded=True)


CALLS = {
    "everything that can be 1 is": Call(1, 1, 1, torch.bfloat16, {"num_tokens", "vocab_size", "num_splits"}),
    "one position": Call(1, 64, 1031, torch.bfloat16, {"num_tokens"}),
    "one split": Call(17, 33, 16, torch.float32, {"num_splits"}, everything=True),
    "nothing is 1": Call(17, 64, 1031, torch.float16, set(), tied=True, everything=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_every_launch(name: str, compiled: list[Any]) -> None:
    from understudy_kernels.device.divergence import divergence
    from understudy_kernels.device.score import score

    call = CALLS[name]
    p = call.head()
    q = call.head(p.weight if call.tied else None)
    targets = torch.zeros(call.num_tokens, dtype=torch.int64)
    logits = Logits(torch.zeros(call.num_tokens, call.vocab_size, dtype=call.dtype), call.vocab_size)
    score(p, targets)
    divergence(p, q, targets, js=True)
    score(logits, targets)
    divergence(logits, logits, targets, js=True)
    of_score, of_divergence = ["target_kernel", "sweep_kernel"], ["sweep_kernel", "merge_kernel", "distance_kernel"]
    assert [kernel.name for kernel in compiled] == 2 * [*of_score, "merge_kernel", *of_divergence]
    merge = compiled[2].src.signature
    assert {argument for argument, kind in merge.items() if kind == "constexpr" and argument.islower()} == call.ones
    for kernel in compiled:
        assert kernel.asm["cubin"], kernel.name
        assert kernel.metadata.shared <= Device().shared_bytes, kernel.name
