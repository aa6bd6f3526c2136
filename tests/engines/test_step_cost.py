"""What a step costs, from steps whose cost is known."""

from __future__ import annotations

import random

import pytest

from understudy.engines.step_cost import PRIOR, REFIT_EVERY, WINDOW, StepCost

FIXED, ROW, DRAFTED, TOKEN = 0.004, 0.0003, 0.0005, 0.0002  # seconds; other ratios than the prior's


def measured(number: int, *, drafted: bool = True, noise: float = 0.05, seed: int = 1) -> StepCost:
    chance, cost = random.Random(seed), StepCost()
    for _ in range(number):
        num_rows = chance.randint(1, 16)
        num_drafted = chance.choice([0, chance.randint(1, 200)]) if drafted else 0
        seconds = FIXED + ROW * num_rows + DRAFTED * (num_drafted > 0) + TOKEN * num_drafted
        seconds *= chance.uniform(1 - noise, 1 + noise)
        cost.saw(num_rows, num_drafted, seconds * 20 if chance.random() < 0.05 else seconds)
    return cost


def test_before_anything_was_seen_the_price_is_the_priors() -> None:
    price = StepCost().price(8)
    assert price.plain == pytest.approx(PRIOR[0] + 8 * PRIOR[1])
    assert (price.drafted, price.token) == (PRIOR[2], PRIOR[3])


@pytest.mark.parametrize("seed", range(8))
def test_the_price_is_that_of_the_steps_although_some_were_disturbed(seed: int) -> None:
    price = measured(WINDOW, seed=seed).price(8)
    assert price.plain == pytest.approx(FIXED + 8 * ROW, rel=0.1)
    assert price.token == pytest.approx(TOKEN, rel=0.1)
    assert 0.2 * DRAFTED < price.drafted < 3 * DRAFTED  # an eighth of a step, behind 5% of noise


@pytest.mark.parametrize("seed", range(8))
def test_what_the_steps_do_not_tell_stays_the_priors_share_of_a_step(seed: int) -> None:
    price = measured(WINDOW, drafted=False, seed=seed).price(8)
    assert price.plain == pytest.approx(FIXED + 8 * ROW, rel=0.1)
    assert 0.5 * PRIOR[3] < price.token / FIXED < 2 * PRIOR[3]
    assert 0.5 * PRIOR[2] < price.drafted / FIXED < 2 * PRIOR[2]


def test_a_machine_that_gets_slower_is_followed() -> None:
    cost = measured(WINDOW)
    before = cost.price(4)
    for _ in range(WINDOW + REFIT_EVERY):
        cost.saw(4, 8, 10 * (FIXED + 4 * ROW + DRAFTED + 8 * TOKEN))
    assert cost.price(4).plain > 5 * before.plain


def test_steps_of_one_kind_only_and_of_no_time_at_all_are_no_error() -> None:
    for seconds in (0.0, 1e-9, 5.0):
        cost = StepCost()
        for _ in range(WINDOW):
            cost.saw(1, 0, seconds)
        price = cost.price(1)
        assert price.plain > 0
        assert price.token > 0
