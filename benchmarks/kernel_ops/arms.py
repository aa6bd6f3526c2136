"""What both benchmarks share: their options, the regimes, inputs, and what others offer."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import finish, machine, parser
from benchmarks.kernel_ops.measure import Absent, Arm, Regime, best_device, describe, measure, print_table, result

GPU_REGIMES = (
    Regime(1, 4096, 128256, "bfloat16"),
    Regime(32, 4096, 128256, "bfloat16"),
    Regime(1024, 4096, 128256, "bfloat16"),
    Regime(8192, 4096, 128256, "bfloat16"),
    Regime(16384, 2048, 32000, "bfloat16"),
    Regime(2048, 8192, 152064, "bfloat16"),
)
CPU_REGIMES = (
    Regime(512, 1024, 32000, "float32"),
    Regime(512, 1024, 32000, "bfloat16"),
    Regime(512, 2048, 32000, "float32"),
    Regime(512, 576, 128256, "float32"),
)


def run(
    name: str, doc: str | None, make_arms: Callable[..., dict[str, Arm | Absent]], products: str, num_heads: int
) -> None:
    """The whole of a benchmark: options, every regime, table, file."""
    device = best_device()
    options = parse_options(doc, device)
    found = []
    for regime in options.regimes:
        flops = 2.0 * num_heads * regime.num_tokens * regime.hidden_size * regime.vocab_size
        arms = {key: arm for key, arm in make_arms(regime, device).items() if key not in options.without}
        rows = measure(arms, device, options.budget_s, flops)
        print_table(regime, rows, products)
        found.append(result(regime, rows))
        del arms
        if device.type == "cuda":
            torch.cuda.empty_cache()
    finish({"benchmark": name, "machine": machine() | describe(device), "regimes": found}, options.out)


def parse_options(doc: str | None, device: torch.device) -> argparse.Namespace:
    options = parser(doc)
    options.add_argument("--budget-s", type=float, default=6.0, help="for the repeats of one regime")
    options.add_argument("--without", nargs="*", default=[], metavar="ARM", help="leave these arms out")
    options.add_argument(
        "--regimes", nargs="*", type=parse_regime, metavar="T,H,V,DTYPE",
        default=GPU_REGIMES if device.type == "cuda" else CPU_REGIMES,
    )  # fmt: skip
    return options.parse_args()


def parse_regime(text: str) -> Regime:
    """From 512,1024,32000,bfloat16."""
    num_tokens, hidden_size, vocab_size, dtype = text.split(",")
    return Regime(int(num_tokens), int(hidden_size), int(vocab_size), dtype)


def random_inputs(regime: Regime, device: torch.device, num_models: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Hidden states and heads of models near each other, with logits of standard deviation 3; and targets."""
    torch.manual_seed(0)
    dtype: torch.dtype = getattr(torch, regime.dtype)
    hidden = torch.randn(regime.num_tokens, regime.hidden_size, device=device)
    models: list[tuple[Tensor, Tensor]] = []
    for _ in range(num_models):
        near = (hidden + 0.1 * torch.randn_like(hidden)).to(dtype)
        weight = torch.randn(regime.vocab_size, regime.hidden_size, device=device, dtype=dtype)
        if models:
            weight = models[0][1] + 0.1 * weight.mul_(3 / regime.hidden_size**0.5)
        else:
            weight.mul_(3 / regime.hidden_size**0.5)
        models.append((near, weight))
    return models, torch.randint(regime.vocab_size, (regime.num_tokens,), device=device)


def compiled(run: Callable[..., Any], *arguments: Any) -> Arm:
    """torch.compile of an eager arm; compiling is not timed."""
    fast = torch.compile(run, dynamic=False)
    return Arm(lambda: fast(*arguments))


def liger(name: str) -> Any:
    """A function of Liger, or why it is not there."""
    if best_device().type != "cuda":
        return Absent("Liger's kernels do not run on the CPU")
    try:
        return getattr(importlib.import_module("liger_kernel.transformers.functional"), name)
    except ImportError:
        return Absent("liger_kernel is not installed (pip install liger-kernel; it is no dependency)")
