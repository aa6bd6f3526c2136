"""From checked sources to what a launch needs: pointers, numbers, compile-time flags, and the plan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from understudy_kernels.plan import Device, Plan, Shape, plan
from understudy_kernels.source import Head, Source


@dataclass(frozen=True, slots=True)
class HeadArguments:
    """One side, as the kernels take it; logits travel in the place of the hidden states."""

    pointers: tuple[Tensor, Tensor, Tensor]
    numbers: tuple[int, int, int, float, float]
    flags: dict[str, Any]

    def is_even(self, block_hidden: int) -> bool:
        """Whether the hidden size needs no mask."""
        return block_hidden > 0 and self.numbers[0] % block_hidden == 0


def head_arguments(source: Source) -> HeadArguments:
    """Unused pointers point at something that is not read."""
    if not isinstance(source, Head):
        logits = source.logits
        return HeadArguments(
            (logits, logits, logits),
            (0, int(logits.stride(0)), 0, 1.0, 1.0),
            {"IS_HEAD": False, "HAS_BIAS": False, "HAS_SOFTCAP": False, "ROUNDED": False},
        )
    return HeadArguments(
        (source.hidden, source.weight, source.weight if source.bias is None else source.bias.contiguous()),
        (
            int(source.hidden.shape[1]),
            int(source.hidden.stride(0)),
            int(source.weight.stride(0)),
            source.scale,
            source.softcap or 1.0,
        ),
        {
            "IS_HEAD": True,
            "HAS_BIAS": source.bias is not None,
            "HAS_SOFTCAP": source.softcap is not None,
            "ROUNDED": source.rounded,
        },
    )


def run_plan(*sources: Source, tied: bool = False) -> Plan:
    """The plan for one or two sides where they are."""
    first = sources[0]
    heads = [source for source in sources if isinstance(source, Head)]
    shape = Shape(first.num_tokens, first.vocab_size, tuple(int(head.hidden.shape[1]) for head in heads), tied)
    dtypes = [head.weight.dtype for head in heads] or [torch.float32]
    return plan(shape, max(dtypes, key=lambda dtype: dtype.itemsize), device_of(first.device), len(sources))


@cache
def device_of(device: torch.device) -> Device:
    """What the driver says of a GPU; the interpreter plays an H100."""
    if device.type != "cuda":
        return Device()
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.multi_processor_count, properties.shared_memory_per_block_optin)


def widen(*sources: Source) -> bool:
    """Triton's interpreter multiplies bfloat16 wrongly (float16 and float32 rightly)."""
    return bool(knobs.runtime.interpret) and any(
        isinstance(source, Head) and source.weight.dtype == torch.bfloat16 for source in sources
    )
