"""The core test: what it promises, by simulation with a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from understudy.judge.evidence import Evidence, planned_units

ALPHA = 0.05
THRESHOLD = math.log(1 / ALPHA)
MARGIN = 0.1


def first_looks(
    better: float, worse: float, rejects: Callable[[Evidence], bool], *, runs: int, units: int = 1000
) -> list[int | None]:
    """For each run, the first look (every 20 units) at which ``rejects``. D is +1, -1 or 0."""
    generator = np.random.default_rng(20240601)
    looks = []
    for _ in range(runs):
        d = generator.choice([-1, 0, 1], size=units, p=[worse, 1 - better - worse, better])
        plus, minus = np.cumsum(d == 1), np.cumsum(d == -1)
        found = None
        for t in range(20, units + 1, 20):
            counts = {
                -1.0: int(minus[t - 1]),
                0.0: t - int(minus[t - 1] + plus[t - 1]),
                1.0: int(plus[t - 1]),
            }
            if rejects(Evidence.of(counts)):
                found = t
                break
        looks.append(found)
    return looks


def share(looks: list[int | None]) -> float:
    return sum(look is not None for look in looks) / len(looks)


def go(evidence: Evidence) -> bool:
    return evidence.log_e_go(MARGIN) >= THRESHOLD


def no_go(evidence: Evidence) -> bool:
    return evidence.log_e_no_go(MARGIN) >= THRESHOLD


def test_at_the_boundary_a_false_go_is_rare_however_often_one_looks() -> None:
    false_go = share(first_looks(0.05, 0.15, go, runs=400))
    assert 0.0 < false_go <= ALPHA  # 0 would mean that the simulation can not find one


def test_at_the_boundary_a_false_no_go_is_rare_however_often_one_looks() -> None:
    false_no_go = share(first_looks(0.05, 0.15, no_go, runs=400))
    assert 0.0 < false_no_go <= ALPHA


def test_equal_models_reach_go_at_a_sensible_size() -> None:
    looks = first_looks(0.05, 0.05, go, runs=100)
    assert share(looks) > 0.95
    assert sorted(look or 10**6 for look in looks)[50] <= planned_units(MARGIN, discordant_fraction=0.1)


def test_a_clearly_worse_challenger_reaches_no_go() -> None:
    looks = first_looks(0.02, 0.30, no_go, runs=50)
    assert share(looks) == 1.0
    assert sorted(look or 10**6 for look in looks)[25] <= 200


def test_the_confidence_sequence_covers_at_every_look() -> None:
    """One end each at alpha: both hold throughout in at least 1 - 2 alpha of the runs."""

    def misses(evidence: Evidence) -> bool:
        low, high = evidence.interval(ALPHA)
        return not low <= 0.15 <= high

    missed = share(first_looks(0.30, 0.15, misses, runs=60, units=600))
    assert missed <= 2 * ALPHA


def test_the_interval_narrows_around_the_mean() -> None:
    few, many = (Evidence.of({-1.0: 5 * n, 0.0: 90 * n, 1.0: 5 * n}).interval(ALPHA) for n in (1, 100))
    assert few[0] < many[0] < 0 < many[1] < few[1]
    assert many[1] - many[0] < 0.03


@pytest.mark.parametrize("counts", [{0.0: 200}, {-1.0: 3, 0.0: 200, 1.0: 9}, {-1.0: 40, 0.0: 100}, {1.0: 5}])
def test_the_interval_and_the_claims_are_the_same_test(counts: dict[float, int]) -> None:
    evidence = Evidence.of(counts)
    low, high = evidence.interval(ALPHA)
    for end, log_e in ((low, evidence.log_e_go), (high, evidence.log_e_no_go)):
        if abs(end) < 1:
            assert log_e(-end) == pytest.approx(THRESHOLD, abs=1e-4)


def test_swapping_the_sides_mirrors_everything() -> None:
    evidence = Evidence.of({-1.0: 30, -0.25: 7, 0.0: 500, 1.0: 12})
    swapped = evidence.swapped()
    low, high = evidence.interval(ALPHA)
    assert swapped.interval(ALPHA) == pytest.approx((-high, -low), abs=1e-8)
    assert swapped.mean == pytest.approx(-(evidence.mean or 0.0))
    assert swapped.log_e_go(MARGIN) == pytest.approx(evidence.log_e_no_go(-MARGIN))


def test_counts_values_and_merged_halves_agree_with_the_formula() -> None:
    values = [1.0, 0.0, -1.0, 0.5, 0.0, 0.0, -0.5, 1.0]
    stakes = np.geomspace(0.002, 0.95, 24) / (1 - MARGIN)
    e = np.mean([math.prod(1 + stake * (value + MARGIN) for value in values) for stake in stakes])
    whole = Evidence.of(values)
    assert whole.log_e_go(MARGIN) == pytest.approx(math.log(e))
    merged = Evidence.of(values[:3]).merged(Evidence.of(values[3:]))
    assert merged.log_e_go(MARGIN) == whole.log_e_go(MARGIN)
    assert merged.num_units == len(values)


def test_nothing_seen_proves_nothing() -> None:
    nothing = Evidence.of([])
    assert nothing.log_e_go(MARGIN) == nothing.log_e_no_go(MARGIN) == 0.0
    assert nothing.interval(ALPHA) == (-1.0, 1.0)
    assert nothing.mean is None


def test_a_million_units_do_not_overflow() -> None:
    evidence = Evidence.of({-1.0: 50_000, 0.0: 900_000, 1.0: 50_000})
    assert 0 < evidence.log_e_go(MARGIN) < 1e6
    assert math.isfinite(evidence.log_e_no_go(MARGIN))


@pytest.mark.parametrize("value", [1.01, -1.01, math.nan, math.inf])
def test_values_out_of_bounds_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="differences"):
        Evidence.of([0.0, value])


def test_the_estimate_of_more_units_is_about_right() -> None:
    """Median first look of equal models against the estimate made without data, and half way."""
    median = sorted(look or 10**6 for look in first_looks(0.05, 0.05, go, runs=100))[50]
    at_start = Evidence.of([]).units_to_go(MARGIN, ALPHA)
    half_way = Evidence.of({-1.0: median // 40, 0.0: median // 2 * 0.9, 1.0: median // 40})
    more = half_way.units_to_go(MARGIN, ALPHA)
    assert at_start is not None
    assert more is not None
    assert 0.5 * median < at_start < 2 * median
    assert 0.5 * median < median / 2 + more < 2 * median
    assert Evidence.of({-1.0: 300, 0.0: 700}).units_to_go(MARGIN, ALPHA) is None
    assert Evidence.of({-1.0: 300, 0.0: 700}).units_to_no_go(MARGIN, ALPHA) == 0


def test_planned_units_follow_the_formula() -> None:
    assert planned_units(0.02) == pytest.approx(2.3 * (1.6449 + 0.8416) ** 2 * 0.1 / 0.02**2, rel=1e-3)
    assert planned_units(0.02, difference=0.01) < planned_units(0.02) < planned_units(0.02, difference=-0.01)
    with pytest.raises(ValueError, match="never"):
        planned_units(0.02, difference=-0.02)
