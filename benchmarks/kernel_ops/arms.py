"""What both benchmarks share: their options, the regimes, inputs, and what others offer."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import finish, machine, parser
from benchmarks.kernel_ops.measure import Absent, Arm, Regime, best_device, describe, measure, print_table, result
from understudy_kernels.reference import tiles

GPU_REGIMES = (
    Regime(1, 4096, 128256, "bfloat16"),
    Regime(32, 4096, 128256, "bfloat16"),
    Regime(1024, 4096, 128256, "bfloat16"),
    Regime(8192, 4096, 128256, "bfloat16"),
    Regime(16384, 2048, 32000, "bfloat16"),
    Regime(2048, 8192, 152064, "bfloat16"),
    Regime(16384, 4096, 128256, "bfloat16"),  # by count eager takes 78 GB of two models, or is "out of memory"
)
CPU_REGIMES = (
    Regime(512, 1024, 32000, "float32"),
    Regime(512, 1024, 32000, "bfloat16"),
    Regime(512, 2048, 32000, "float32"),
    Regime(512, 576, 128256, "float32"),
)
GPU_TILES = {"MAX_ROWS": 4096, "TILE_BYTES": 1 << 28, "WIDENED_BYTES": 1 << 28, "HIDDEN_BYTES": 1 << 26}
GPU_BUDGET_S, CPU_BUDGET_S = 3.0, 6.0
"""For the repeats of one regime. On a GPU compiling takes longer than measuring, and all of it is to fit in five
minutes."""


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
    options.add_argument(
        "--budget-s", type=float, help="for the repeats of one regime",
        default=GPU_BUDGET_S if device.type == "cuda" else CPU_BUDGET_S,
    )  # fmt: skip
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


@contextmanager
def large_tiles() -> Iterator[None]:
    """Our tiled PyTorch in tiles that one would choose for a GPU.

    In those for a CPU's caches (1 MiB) a vocabulary of 128k and 8192 positions are 64k tiles, each a dozen launches and
    two waits for the device: minutes of nothing that a chunked version need take.
    """
    usual = {name: getattr(tiles, name) for name in GPU_TILES}
    try:
        for name, value in GPU_TILES.items():
            setattr(tiles, name, value)
        yield
    finally:
        for name, value in usual.items():
            setattr(tiles, name, value)


def chunked(run: Callable[[], Any], value: Callable[[Any], Tensor], device: torch.device) -> Arm | Absent:
    """The tiled path on a GPU."""
    if device.type == "cpu":
        return Absent("is ours, on the CPU")

    def in_large_tiles() -> Any:
        with large_tiles():
            return run()

    return Arm(in_large_tiles, value)


def liger(name: str) -> Any:
    """A function of Liger, or why it is not there."""
    if best_device().type != "cuda":
        return Absent("Liger's kernels do not run on the CPU")
    try:
        return getattr(importlib.import_module("liger_kernel.transformers.functional"), name)
    except ImportError:
        return Absent("liger_kernel is not installed (pip install liger-kernel; it is no dependency)")
