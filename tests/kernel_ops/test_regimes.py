"""What the benchmarks of the kernels measure on a GPU: the shapes of real models, in a time that fits."""

from __future__ import annotations

import pytest
import torch
from benchmarks.kernel_ops.arms import GPU_BUDGET_S, GPU_REGIMES, chunked, large_tiles
from benchmarks.kernel_ops.measure import Arm

from understudy_kernels.reference import tiles
from understudy_kernels.reference.score import score
from understudy_kernels.source import Head

MAX_TILES = 100
"""A tile of a chunked version is some twenty launches and a wait; fewer than these are far less than its products."""


def test_the_shapes_are_those_of_real_models() -> None:
    assert {regime.hidden_size for regime in GPU_REGIMES} >= {2048, 4096, 8192}
    assert {regime.vocab_size for regime in GPU_REGIMES} >= {32000, 128256, 152064}
    many = [regime.num_tokens for regime in GPU_REGIMES if regime.vocab_size >= 128000]
    assert (min(many), max(many)) == (1, 16384)


def test_repeats_take_less_than_a_minute() -> None:
    """Of the five that both benchmarks have on a GPU; the rest is for compiling and for at least five repeats."""
    assert 2 * len(GPU_REGIMES) * GPU_BUDGET_S < 60


@pytest.mark.parametrize("regime", GPU_REGIMES, ids=str)
def test_chunked_is_chunked_for_a_gpu(regime: object) -> None:
    num_tokens, hidden_size, vocab_size = (
        getattr(regime, name) for name in ("num_tokens", "hidden_size", "vocab_size")
    )
    shapes = ((num_tokens, hidden_size), (vocab_size, hidden_size))
    hidden, weight = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes)
    head = Head(hidden, weight, vocab_size)
    with large_tiles():
        ranges = list(tiles.row_ranges(head, head))
        columns = tiles.num_columns(2 * (ranges[0].stop - ranges[0].start), head, head)
    assert len(ranges) * -(-vocab_size // columns) <= MAX_TILES
    assert 4 * columns * ranges[0].stop <= 1 << 28, "a tile of a chunked version is small"


def test_large_tiles_end_with_the_arm_and_change_no_number() -> None:
    head = Head(torch.randn(40, 24), torch.randn(700, 24), 700)
    targets = torch.randint(700, (40,))
    arm = chunked(
        lambda: (tiles.TILE_BYTES, score(head, targets)), lambda found: found[1].logprob, torch.device("cuda")
    )
    assert isinstance(arm, Arm)
    assert arm.value is not None
    tile_bytes, usual = tiles.TILE_BYTES, score(head, targets)
    found = arm.run()
    assert found[0] > tile_bytes == tiles.TILE_BYTES
    torch.testing.assert_close(arm.value(found), usual.logprob)
