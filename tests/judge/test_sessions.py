"""The unit is the session: ten requests of one person are one piece of evidence."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from understudy.judge.gates import Decision, Gate
from understudy.types import State

from .conftest import PATTERN, Desk, exchange

NewDesk = Callable[..., Desk]


def say(desk: Desk, name: str, session: str, ending: bool | State, *, champion: bool = True, at: float) -> None:
    text = "Category: refund" if champion else "Category: other"
    desk.end(exchange(name, text, session=session, at=at), ending)
    desk.judge.feedback(name, "refund")


def false_go_share(new_desk: NewDesk, *, sessions_are_told: bool) -> float:
    """60 runs at the boundary: a session is all worse (25%), all better (15%) or equal; looked at thrice."""
    dice, false_go, runs = random.Random(3), 0, 60
    for _ in range(runs):
        desk = new_desk(Gate("accuracy", 0.1, pattern=PATTERN, min_units=20))
        for number in range(60):
            kind = dice.choices(["worse", "better", "equal"], [0.25, 0.15, 0.60])[0]
            for turn in range(10):
                name = f"{number}-{turn}"
                session = f"s{number}" if sessions_are_told else name
                say(desk, name, session, kind != "worse", champion=kind != "better", at=desk.now[0] + turn)
            desk.now[0] += 100.0
            if number % 20 == 19 and desk.judge.verdict("challenger").verdict is Decision.GO:
                false_go += 1
                break
    return false_go / runs


def test_sessions_of_ten_do_not_inflate_the_evidence(new_desk: NewDesk) -> None:
    assert false_go_share(new_desk, sessions_are_told=True) <= 0.05


def test_and_without_sessions_the_same_traffic_fools_the_gate(new_desk: NewDesk) -> None:
    """The test above has teeth: as independent requests its traffic passes far more often than alpha."""
    assert false_go_share(new_desk, sessions_are_told=False) > 0.2


def test_a_session_is_one_unit_with_the_mean_of_its_exchanges(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    for turn, right in enumerate([True, False, False, True]):
        say(desk, str(turn), "s", right, at=desk.now[0] + turn)
    desk.now[0] += 100
    gate = desk.judge.verdict("challenger").gates[0]
    assert (gate.units, gate.difference) == (1, -0.5)


def test_a_session_counts_once_it_has_been_quiet(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy, session_idle_s=60.0)
    start = desk.now[0]
    say(desk, "a", "s", False, at=start)
    for now, units in ((start + 59, 0), (start + 60, 1)):
        desk.now[0] = now
        verdict = desk.judge.verdict("challenger")
        assert (verdict.gates[0].units, verdict.open_sessions) == (units, 1 - units)
        assert ("1 session is still open" in verdict.reason) == (units == 0)


def test_what_comes_after_the_gap_opens_no_new_unit_and_changes_nothing(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy, session_idle_s=60.0)
    start = desk.now[0]
    say(desk, "a", "s", False, at=start)
    desk.now[0] = start + 100
    before = desk.judge.verdict("challenger")
    say(desk, "b", "s", True, at=start + 100)
    assert desk.judge.verdict("challenger") == before
    assert before.gates[0].difference == -1


def test_a_late_label_revises_its_session(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    say(desk, "a", "s", False, at=desk.now[0])
    desk.end(exchange("b", "Category: refund", session="s", at=desk.now[0] + 1), True)
    desk.now[0] += 100
    assert desk.judge.verdict("challenger").gates[0].difference == -1
    desk.judge.feedback("b", "refund")
    gate = desk.judge.verdict("challenger").gates[0]
    assert (gate.units, gate.difference) == (1, -0.5)


def test_a_session_named_like_an_exchange_is_another_unit(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    desk.pair("x", True, True)
    say(desk, "y", "x", True, at=desk.now[0])
    desk.now[0] += 100
    assert desk.judge.verdict("challenger").gates[0].units == 2


def test_missing_turns_widen_the_bounds_of_a_session(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy, Gate("missing", 0.1))
    say(desk, "a", "s", True, at=desk.now[0])
    say(desk, "b", "s", State.SHED, at=desk.now[0] + 1)
    desk.now[0] += 100
    quality, missing = desk.judge.verdict("challenger").gates
    assert (quality.difference, quality.missing_fraction) == (-0.5, 0.5)
    assert missing.difference == pytest.approx(-0.5)


def test_offline_every_session_counts_at_the_end(new_desk: NewDesk, accuracy: Gate) -> None:
    """Nothing more will come, so nobody waits for a session to be quiet."""
    desk = new_desk(accuracy)
    say(desk, "1", "s", True, at=desk.now[0])
    assert (desk.judge.verdict("challenger").gates[0].units, desk.judge.verdict("challenger").open_sessions) == (0, 1)
    desk.judge.no_more()
    assert (desk.judge.verdict("challenger").gates[0].units, desk.judge.verdict("challenger").open_sessions) == (1, 0)
