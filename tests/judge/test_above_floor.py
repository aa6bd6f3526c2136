"""agreement_above_floor: disagreement counts only above the champion's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from understudy.config import parse
from understudy.errors import ConfigError
from understudy.judge.gates import Decision, Gate
from understudy.types import Comparison, Ending, Floor, State

from .conftest import Desk, exchange, observation

NewDesk = Callable[..., Desk]
GATE = Gate("agreement_above_floor", 0.05, min_units=20)


def ending(own: bool | None, challengers: bool | None) -> Ending:
    """``own``: whether the champion repeated itself, ``challengers``: whether the challenger said the same."""
    floor = Floor(reason="late") if own is None else Floor(comparison=Comparison({"exact_match": float(own)}))
    if challengers is None:
        return Ending(State.FAILED, "nan", floor=floor)
    compared = Comparison({"exact_match": float(challengers)})
    return Ending(State.COMPARED, challenger=observation("challenger", "x"), comparison=compared, floor=floor)


def feed(desk: Desk, prefix: str, count: int, one: Ending) -> None:
    for index in range(count):
        whole = exchange(f"{prefix}-{index}", "x", at=desk.now[0])
        desk.feed(lambda judge, whole=whole: judge.ended(whole, "challenger", one))  # type: ignore[misc]


def test_a_challenger_no_noisier_than_the_champion_reaches_go(new_desk: NewDesk) -> None:
    """Both differ from the first answer in half of the exchanges: plain agreement could never pass."""
    desk = new_desk(GATE)
    feed(desk, "same", 200, ending(True, True))
    feed(desk, "neither", 200, ending(False, False))
    gate = desk.judge.verdict("challenger").gates[0]
    assert (gate.decision, gate.difference, gate.champion_mean) == (Decision.GO, 0.0, 0.5)


def test_disagreement_above_the_floor_is_found(new_desk: NewDesk) -> None:
    desk = new_desk(GATE)
    feed(desk, "same", 100, ending(True, True))
    feed(desk, "worse", 40, ending(True, False))
    verdict = desk.judge.verdict("challenger")
    assert verdict.verdict is Decision.NO_GO
    assert "more often than the champion itself" in verdict.reason


def test_exchanges_outside_the_slice_and_failed_floors_say_nothing(new_desk: NewDesk) -> None:
    desk = new_desk(GATE)
    feed(desk, "late", 50, ending(None, False))
    compared = Ending(State.COMPARED, challenger=observation("challenger", "x"), comparison=Comparison({}))
    feed(desk, "outside", 50, compared)
    assert desk.judge.verdict("challenger").gates[0].units == 0


def test_a_missing_answer_is_worst_case_for_go_and_none_for_no_go(new_desk: NewDesk) -> None:
    desk = new_desk(GATE)
    feed(desk, "same", 100, ending(True, True))
    feed(desk, "gone", 40, ending(True, None))
    gate = desk.judge.verdict("challenger").gates[0]
    assert gate.decision is Decision.NOT_ENOUGH_DATA
    assert gate.missing_fraction == pytest.approx(40 / 140)
    assert gate.interval[0] < -0.05 < gate.interval[1]


def test_the_gate_needs_a_noise_floor() -> None:
    raw = {"champion": {"model": "m"}, "gates": [{"metric": "agreement_above_floor", "margin": 0.05}]}
    with pytest.raises(ConfigError, match=r"set shadow\.noise_floor above 0"):
        parse(raw)
    assert parse(raw | {"shadow": {"noise_floor": 0.1}}).gates[0].needs_floor
