"""plan() is arithmetic: what must hold for every shape, and how busy it keeps an H100."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.kernel_ops.contract import INTERPRETED, INTERPRETED_DEVICE

from understudy_kernels.plan import MAX_SPLITS, Device, Plan, Shape, ceil_div, plan, power_of_two

H100 = Device()
NUM_TOKENS = (1, 2, 15, 16, 17, 100, 128, 129, 512, 1000, 8192, 16384)
VOCAB_SIZES = (1, 7, 16, 100, 1031, 32000, 50257, 128256, 151936, 262144)
HIDDEN_SIZES = ((), (16,), (33,), (2048,), (4096,), (8192,), (2048, 4096))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def every_plan() -> list[tuple[Shape, torch.dtype, int, Plan]]:
    found = []
    for num_tokens, vocab_size, sizes, dtype in itertools.product(NUM_TOKENS, VOCAB_SIZES, HIDDEN_SIZES, DTYPES):
        for num_sides in {len(sizes) or 1, 2}:
            shape = Shape(num_tokens, vocab_size, sizes)
            found.append((shape, dtype, num_sides, plan(shape, dtype, H100, num_sides)))
    return found


def test_the_splits_cover_the_vocabulary_once() -> None:
    for shape, _, _, chosen in every_plan():
        width = chosen.blocks_per_split * chosen.block_vocab
        assert chosen.num_splits * width >= shape.vocab_size > (chosen.num_splits - 1) * width, (shape, chosen)
        assert chosen.num_splits <= MAX_SPLITS


def test_blocks_are_what_triton_and_the_device_can_take() -> None:
    for shape, dtype, num_sides, chosen in every_plan():
        for block in (chosen.block_tokens, chosen.block_vocab, chosen.block_hidden or 1):
            assert block == power_of_two(block), (shape, chosen)
        if not shape.hidden_sizes:
            assert chosen.block_hidden == 0
            continue
        assert min(chosen.block_tokens, chosen.block_vocab, chosen.block_hidden) >= 16, (shape, chosen)
        operands = (chosen.block_tokens + chosen.block_vocab) * chosen.block_hidden * dtype.itemsize
        assert chosen.num_stages * operands <= H100.shared_bytes, (shape, chosen)
        registers = num_sides * chosen.block_tokens * chosen.block_vocab / (32 * chosen.num_warps)
        assert registers <= 128, (shape, chosen)


@pytest.mark.parametrize("num_tokens", [1, 16, 128, 512, 1024, 8192, 16384])
@pytest.mark.parametrize("vocab_size", [32000, 128256, 151936])
@pytest.mark.parametrize("num_sides", [1, 2])
def test_the_device_is_busy(num_tokens: int, vocab_size: int, num_sides: int) -> None:
    """Of the multiprocessors' time at least 0.85 is work, if all blocks take equally long; one token included."""
    chosen = plan(Shape(num_tokens, vocab_size, (4096,) * num_sides), torch.bfloat16, H100, num_sides)
    num_rows, num_splits = chosen.programs(num_tokens)
    work = num_rows * ceil_div(vocab_size, chosen.block_vocab)
    waves = ceil_div(num_rows * num_splits, H100.num_sms)
    assert work / (waves * chosen.blocks_per_split * H100.num_sms) >= 0.85, chosen


@pytest.mark.parametrize("num_sides", [1, 2])
def test_interpreted_cases_reach_every_kind_of_plan(num_sides: int) -> None:
    """Several blocks in a program, several splits, both together, several rows of programs."""
    plans = {
        case: plan(Shape(case.num_tokens, case.vocab_size, sizes), dtype, INTERPRETED_DEVICE, num_sides)
        for case, dtype in INTERPRETED
        if case.num_tokens
        for sizes in [(case.hidden_size, case.hidden_size_q or case.hidden_size)[:num_sides]]
    }
    assert any(chosen.blocks_per_split > 1 and chosen.num_splits > 1 for chosen in plans.values())
    assert any(chosen.num_splits == 1 for chosen in plans.values())
    assert any(chosen.programs(case.num_tokens)[0] > 1 for case, chosen in plans.items())
    even = {case.hidden_size % chosen.block_hidden == 0 for case, chosen in plans.items()}
    assert even == {False, True}


def test_what_is_left_to_merge_is_small() -> None:
    """Under a hundredth of the logits, in bytes, from 32 tokens on."""
    for num_tokens in (32, 512, 8192, 16384):
        for num_sides, num_sums in ((1, 5), (2, 15)):
            chosen = plan(Shape(num_tokens, 128256, (4096,) * num_sides), torch.bfloat16, H100, num_sides)
            assert num_sums * chosen.num_splits * 100 <= num_sides * 128256, chosen


def test_a_smaller_device_gets_smaller_tiles_and_fewer_splits() -> None:
    shape = Shape(1, 128256, (4096,))
    small, large = (plan(shape, torch.bfloat16, device) for device in (Device(40, 64 * 1024), H100))
    assert small.num_stages < large.num_stages
    assert small.num_splits < large.num_splits
