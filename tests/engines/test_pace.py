"""How large a challenger's step may be, and what it is owed."""

from __future__ import annotations

import pytest

from understudy.engines.pace import Share, StepLimit


def settle(limit: StepLimit, fixed_s: float, per_token_s: float, steps: int = 200, wanted: int = 10**6) -> list[float]:
    """The slices of a model whose step costs so much; a step takes all tokens that it may have."""
    slices = []
    for _ in range(steps):
        tokens = min(limit.tokens, wanted)
        slices.append(fixed_s + per_token_s * tokens)
        limit.saw(tokens, slices[-1])
    return slices


@pytest.mark.parametrize(("fixed_s", "per_token_s"), [(0.0, 0.0001), (0.004, 0.0003), (0.0, 0.0006), (0.008, 0.0001)])
def test_steps_settle_below_the_limit_and_near_it(fixed_s: float, per_token_s: float) -> None:
    limit = StepLimit(0.010, 4096, 64)
    slices = settle(limit, fixed_s, per_token_s)
    late = slices[50:]
    assert max(late) <= 0.0101
    assert max(late) >= 0.0079  # not smaller than it needs to be


def test_a_model_that_is_too_slow_gets_what_takes_no_longer_than_one_token() -> None:
    limit = StepLimit(0.010, 512, 64)
    settle(limit, 0.1, 0.0)
    assert limit.tokens == 16
    few = StepLimit(0.010, 8, 64)  # vLLM was built for fewer
    settle(few, 0.1, 0.0)
    assert few.tokens == 8


def test_it_never_exceeds_what_vllm_was_built_for() -> None:
    limit = StepLimit(0.010, 512, 64)
    settle(limit, 0.0, 1e-9)
    assert limit.tokens == 512
    assert StepLimit(0.010, 8, 64).tokens == 8


def test_a_step_with_little_to_do_says_nothing_about_large_ones() -> None:
    limit = StepLimit(0.010, 512, 64)
    settle(limit, 0.0, 1e-6, wanted=3)
    assert limit.tokens == 64
    limit.saw(0, 5.0)  # nothing was scheduled
    assert limit.tokens == 64


def test_one_slow_step_moves_nothing() -> None:
    limit = StepLimit(0.010, 512, 512)
    limit.saw(512, 3.0)
    assert limit.tokens == 512
    settle(limit, 0.0, 1e-6, steps=3)
    limit.saw(512, 3.0)  # again, but long after
    assert limit.tokens == 512


def test_two_that_are_close_halve_it_at_most() -> None:
    limit = StepLimit(0.010, 512, 512)
    limit.saw(512, 3.0)
    limit.saw(512, 3.0)
    assert limit.tokens == 256


def test_small_steps_that_are_slow_lower_it_step_by_step() -> None:
    limit = StepLimit(0.010, 512, 512)
    for _ in range(2):
        limit.saw(16, 0.0125)
    assert limit.tokens == 409
    settle(limit, 0.020, 0.0, wanted=4)
    assert limit.tokens == 16


def test_noise_on_small_steps_leaves_room_for_large_ones() -> None:
    """Every tenth step of a generation is too long for no fault of its own; then a prompt is read."""
    limit = StepLimit(0.010, 512, 512)
    for number in range(400):
        limit.saw(4, 0.030 if number % 10 == 0 else 0.001)
    assert limit.tokens == 512


def test_what_noise_took_is_soon_given_back() -> None:
    limit = StepLimit(0.010, 512, 16)
    settle(limit, 0.001, 1e-6, steps=6)
    assert limit.tokens == 512


def share_of_challengers(fraction: float, champion_step_s: float, slice_s: float, total_s: float = 1000.0) -> float:
    """The share that challengers get beside a champion that never rests."""
    share, champion_s, challenger_s = Share(fraction, 0.010), 0.0, 0.0
    while champion_s + challenger_s < total_s:
        if share.is_owed:
            share.challenger_took(slice_s, champion_waited=True)
            challenger_s += slice_s
        else:
            share.champion_took(champion_step_s)
            champion_s += champion_step_s
    return challenger_s / (champion_s + challenger_s)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("slice_s", [0.0005, 0.010])
def test_the_guarantee_is_kept_and_not_exceeded(fraction: float, slice_s: float) -> None:
    got = share_of_challengers(fraction, 0.012, slice_s)
    assert got == pytest.approx(fraction / (1 + fraction), rel=0.05)  # a part of the champion's time


def test_no_guarantee_is_none() -> None:
    assert share_of_challengers(0.0, 0.012, 0.005, total_s=10.0) == 0.0


def test_what_the_gaps_gave_is_not_owed_and_is_no_debt() -> None:
    share = Share(0.1, 0.010)
    share.champion_took(0.05)
    assert share.is_owed
    share.challenger_took(3.0, champion_waited=False)
    assert not share.is_owed
    share.champion_took(0.001)
    assert share.is_owed  # three seconds in a gap cost the champion nothing


def test_it_cannot_be_saved_up() -> None:
    share = Share(0.1, 0.010)
    share.champion_took(1000.0)
    share.challenger_took(0.011, champion_waited=True)
    assert not share.is_owed
