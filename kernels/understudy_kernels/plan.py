"""How a kernel is cut into programs. Pure arithmetic: nothing here needs a GPU, Triton or a tensor.

A program takes block_tokens positions and blocks_per_split blocks of the vocabulary; splits of the vocabulary run side
by side, each leaving a few floats per position that a small second kernel merges. Without splits one position would
keep one streaming multiprocessor busy and leave 131 idle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

MIN_DOT = 16
"""tl.dot takes no smaller block."""
MAX_SPLITS = 256
"""Bounds what is left behind to be merged: 5 (score) or 15 (divergence) numbers for each split and position."""
NEAR_BEST = 0.98
"""Of plans about as balanced as the best, the one with the fewest splits."""
MAX_STAGES = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What the work depends on. ``hidden_sizes``: of each head, () where logits are given; ``tied``: one weight."""

    num_tokens: int
    vocab_size: int
    hidden_sizes: tuple[int, ...] = ()
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan must know of a GPU; the default is an H100 or H200 SXM."""

    num_sms: int = 132
    shared_bytes: int = 227 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """Block sizes are powers of two. block_hidden is 0 where there is no matrix product."""

    block_tokens: int
    block_vocab: int
    block_hidden: int
    blocks_per_split: int
    num_splits: int
    num_warps: int
    num_stages: int

    def programs(self, num_tokens: int) -> tuple[int, int]:
        """The grid. Neighbours share their part of the weight, so that the L2 cache reads it once for all."""
        return ceil_div(num_tokens, self.block_tokens), self.num_splits


@cache
def plan(shape: Shape, dtype: torch.dtype, device: Device, num_sides: int = 1) -> Plan:
    """Choose the blocks.

    Args:
        shape: num_tokens and vocab_size at least 1.
        dtype: the wider one of the sides.
        device: where it will run.
        num_sides: 1 for score, 2 for divergence, which holds two blocks of logits in registers.
    """
    if shape.hidden_sizes:
        return plan_heads(shape, dtype, device, num_sides)
    return plan_logits(shape, device, num_sides)


def plan_heads(shape: Shape, dtype: torch.dtype, device: Device, num_sides: int) -> Plan:
    """A block of logits is a matrix product kept in registers: 256 float32 for a thread of eight warps would spill."""
    block_tokens = min(max(power_of_two(shape.num_tokens), MIN_DOT), 128)
    accumulators = 128 * 256 if dtype.itemsize == 2 else 128 * 128
    block_vocab = min(max(accumulators // num_sides // block_tokens, 64), 256)
    block_vocab = min(block_vocab, max(power_of_two(shape.vocab_size), MIN_DOT))
    block_hidden = min(128 // dtype.itemsize, max(power_of_two(max(shape.hidden_sizes)), MIN_DOT))
    if block_tokens <= 32 and dtype.itemsize == 2:
        block_hidden = min(2 * block_hidden, max(power_of_two(max(shape.hidden_sizes)), MIN_DOT))  # streams the weight
    operands = block_tokens * (2 if shape.tied else 1) + block_vocab
    num_stages = min(MAX_STAGES, max(1, device.shared_bytes // (operands * block_hidden * dtype.itemsize)))
    num_warps = 8 if num_sides * block_tokens * block_vocab >= 128 * 64 else 4
    return split(shape, device, block_tokens, block_vocab, block_hidden, num_warps, num_stages)


def plan_logits(shape: Shape, device: Device, num_sides: int) -> Plan:
    """One read of memory: few positions, long rows."""
    block_vocab = min(power_of_two(shape.vocab_size), 2048 // num_sides)
    block_tokens = 1 if shape.num_tokens < 4 * device.num_sms else 4
    return split(shape, device, block_tokens, block_vocab, 0, 4, 2)


def split(
    shape: Shape,
    device: Device,
    block_tokens: int,
    block_vocab: int,
    block_hidden: int,
    num_warps: int,
    num_stages: int,
) -> Plan:
    """Spread the vocabulary so that the last wave of programs leaves few multiprocessors idle."""
    num_rows, num_blocks = ceil_div(shape.num_tokens, block_tokens), ceil_div(shape.vocab_size, block_vocab)
    candidates = range(1, min(num_blocks, MAX_SPLITS) + 1)

    def busy(num_splits: int) -> float:
        waves = ceil_div(num_rows * num_splits, device.num_sms)
        return num_rows * num_blocks / (waves * device.num_sms * ceil_div(num_blocks, num_splits))

    best = max(map(busy, candidates))
    num_splits = next(number for number in candidates if busy(number) >= NEAR_BEST * best)
    blocks_per_split = ceil_div(num_blocks, num_splits)
    return Plan(
        block_tokens=block_tokens,
        block_vocab=block_vocab,
        block_hidden=block_hidden,
        blocks_per_split=blocks_per_split,
        num_splits=ceil_div(num_blocks, blocks_per_split),  # none is empty
        num_warps=num_warps,
        num_stages=num_stages,
    )


def ceil_div(number: int, by: int) -> int:
    """Rounded up."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """The smallest that is at least the number, which is at least 1."""
    return 1 << (number - 1).bit_length()
