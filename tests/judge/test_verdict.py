"""The judge: which exchanges count, as what, and that nobody is told GO too early."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from understudy.judge.gates import Decision, Gate
from understudy.judge.verdict import Judge
from understudy.types import Ending, Outcome, State

from .conftest import PATTERN, Desk, compared, exchange

NewDesk = Callable[..., Desk]
GO, NO_GO, NOT_ENOUGH = Decision.GO, Decision.NO_GO, Decision.NOT_ENOUGH_DATA


def test_equal_models_reach_go(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    desk.many("both", 90, True, True)
    desk.many("neither", 10, False, False)
    verdict = desk.judge.verdict("challenger")
    assert verdict.verdict is GO
    assert (verdict.gates[0].champion_mean, verdict.gates[0].challenger_mean) == (0.9, 0.9)
    assert "at most" in verdict.reason


def test_a_worse_challenger_reaches_no_go(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    desk.many("both", 40, True, True)
    desk.many("champion-only", 30, True, False)
    verdict = desk.judge.verdict("challenger")
    assert verdict.verdict is NO_GO
    assert verdict.gates[0].interval[1] < -accuracy.margin
    assert "at least" in verdict.reason


def test_swapping_the_sides_swaps_the_difference(new_desk: NewDesk, accuracy: Gate) -> None:
    one, other = new_desk(accuracy), new_desk(accuracy)
    for desk, champion in ((one, True), (other, False)):
        desk.many("both", 40, True, True)
        desk.many("one-only", 30, champion, not champion)
    a, b = one.judge.verdict("challenger").gates[0], other.judge.verdict("challenger").gates[0]
    assert (a.difference, b.difference) == (-30 / 70, 30 / 70)
    assert a.interval == pytest.approx((-b.interval[1], -b.interval[0]), abs=1e-8)


@pytest.mark.parametrize("gates", [(), (Gate("missing", 0.05), Gate("accuracy", 0.1, pattern=PATTERN))])
def test_zero_traffic_is_never_a_go(new_desk: NewDesk, gates: tuple[Gate, ...]) -> None:
    verdict = new_desk(*gates).judge.verdict("challenger")
    assert verdict.verdict is NOT_ENOUGH
    assert verdict.reason.endswith(".")
    assert json.loads(json.dumps(verdict.as_dict()))["verdict"] == "NOT ENOUGH DATA"


def test_advisory_gates_alone_decide_nothing(new_desk: NewDesk) -> None:
    desk = new_desk(Gate("agreement", 0.1), Gate("missing", 0.3, advisory=True))
    desk.many("same", 300, True, True)
    verdict = desk.judge.verdict("challenger")
    assert [gate.decision for gate in verdict.gates] == [GO, GO]
    assert verdict.verdict is NOT_ENOUGH
    assert "advisory" in verdict.reason


def test_an_advisory_no_go_does_not_decide(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy, Gate("agreement", 0.1))
    for index in range(200):
        ending = compared("Category: refund, in other words", agreement=0.2)
        desk.judge.ended(exchange(str(index), "Category: refund"), "challenger", ending)
        desk.judge.feedback(str(index), "refund")
    verdict = desk.judge.verdict("challenger")
    assert verdict.verdict is GO
    assert verdict.gates[1].decision is NO_GO
    assert verdict.gates[1].challenger_mean == pytest.approx(0.2)


def test_go_needs_every_gate_and_no_go_any(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy, Gate("missing", 0.001))
    desk.many("both", 200, True, True)
    assert desk.judge.verdict("challenger").gates[0].decision is GO
    assert desk.judge.verdict("challenger").verdict is NOT_ENOUGH
    desk.many("shed", 20, True, State.SHED)
    assert desk.judge.verdict("challenger").gates[1].decision is NO_GO
    assert desk.judge.verdict("challenger").verdict is NO_GO


def test_no_go_of_any_of_several_gates_is_tried_at_a_share_of_alpha(new_desk: NewDesk, accuracy: Gate) -> None:
    gates = new_desk(accuracy, Gate("missing", 0.1), Gate("agreement", 0.1)).judge.verdict("x").gates
    assert [(gate.alpha, gate.alpha_no_go) for gate in gates] == [(0.05, 0.025)] * 3


def test_a_parse_failure_is_wrong_and_never_a_tie(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    for index in range(60):
        ending = compared("I think it is about a refund")
        desk.judge.ended(exchange(str(index), "Category: refund"), "challenger", ending)
        desk.judge.feedback(str(index), "refund")
    gate = desk.judge.verdict("challenger").gates[0]
    assert (gate.champion_mean, gate.challenger_mean, gate.missing_fraction) == (1.0, 0.0, 0.0)
    assert gate.decision is NO_GO


@pytest.mark.parametrize("label", ["good", "refund"])
def test_when_nobody_is_ever_right_equal_failure_is_no_go_ahead(new_desk: NewDesk, accuracy: Gate, label: str) -> None:
    """Labels of another kind, or a pattern that never matches: D is 0 throughout, and must not look equal."""
    desk = new_desk(accuracy)
    for index in range(500):
        desk.pair(str(index), label == "good", label == "good", label=label)
    verdict = desk.judge.verdict("challenger")
    assert verdict.verdict is NOT_ENOUGH
    assert "check labels and pattern" in verdict.reason


@pytest.mark.parametrize("state", [State.SHED, State.FAILED, State.EXPIRED])
def test_missing_answers_are_wrong_where_go_is_claimed(new_desk: NewDesk, accuracy: Gate, state: State) -> None:
    desk = new_desk(accuracy)
    desk.many("both", 200, True, True)
    assert desk.judge.verdict("challenger").verdict is GO
    desk.many("missing", 40, True, state)
    gate = desk.judge.verdict("challenger").gates[0]
    assert gate.decision is not GO
    assert gate.difference == pytest.approx(-40 / 240)
    assert gate.missing_fraction == pytest.approx(40 / 240)


def test_failing_is_the_challengers_doing_and_shedding_is_ours(new_desk: NewDesk, accuracy: Gate) -> None:
    failing, shedding = new_desk(accuracy), new_desk(accuracy)
    failing.many("failed", 200, True, State.FAILED)
    shedding.many("shed", 200, True, State.SHED)
    assert failing.judge.verdict("challenger").verdict is NO_GO
    assert shedding.judge.verdict("challenger").verdict is NOT_ENOUGH
    assert shedding.judge.verdict("challenger").gates[0].interval == pytest.approx((-1.0, 0.0), abs=0.06)


def test_what_the_user_cancelled_is_left_out(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy, Gate("missing", 0.1))
    desk.many("cancelled", 30, True, State.CANCELLED)
    assert [gate.units for gate in desk.judge.verdict("challenger").gates] == [0, 0]


def test_without_a_pair_there_is_no_unit(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    failed = exchange("a", outcome=Outcome.FAILED)
    scored = exchange("b", "Category: refund")
    desk.judge.ended(failed, "challenger", Ending(State.SHED, "champion_failed"))
    desk.judge.ended(scored, "challenger", compared())
    desk.judge.feedback("a", "refund")
    desk.judge.feedback("b", "refund")
    assert desk.judge.verdict("challenger").gates[0].units == 0


def test_n_answers_score_as_the_fraction_that_is_right(new_desk: NewDesk, accuracy: Gate) -> None:
    judge = new_desk(accuracy).judge
    judge.ended(exchange("a", "Category: refund"), "challenger", compared("category: REFUND", "none"))
    judge.feedback("a", "  Refund ")
    assert judge.verdict("challenger").gates[0].difference == -0.5


def test_below_min_units_nothing_is_decided(new_desk: NewDesk) -> None:
    desk = new_desk(Gate("accuracy", 0.5, pattern=PATTERN, min_units=50))
    desk.many("both", 49, True, True)
    gate = desk.judge.verdict("challenger").gates[0]
    assert (gate.decision, gate.more_units) == (NOT_ENOUGH, 1)
    desk.many("more", 1, True, True)
    assert desk.judge.verdict("challenger").verdict is GO


def test_the_wait_is_told_in_units_and_hours(new_desk: NewDesk, accuracy: Gate) -> None:
    desk = new_desk(accuracy)
    desk.many("both", 20, True, True)
    desk.now[0] += 2 * 3600
    gate = desk.judge.verdict("challenger").gates[0]
    assert gate.more_units is not None
    assert gate.more_hours == pytest.approx(gate.more_units / 10)
    assert "at today's rate" in desk.judge.verdict("challenger").reason
    desk.now[0] += 30 * 3600  # nothing came today
    assert desk.judge.verdict("challenger").gates[0].more_hours is None


def test_labels_come_before_or_after_and_count_once(new_desk: NewDesk, accuracy: Gate) -> None:
    judge = new_desk(accuracy).judge
    assert judge.feedback("a", "refund")
    assert not judge.feedback("a", "REFUND")
    for challenger in ("challenger", "other"):
        judge.ended(exchange("a", "Category: refund"), challenger, compared("Category: other"))
        judge.ended(exchange("a", "Category: refund"), challenger, compared("Category: other"))
    assert not judge.feedback("a", "refund")
    for challenger in ("challenger", "other"):
        assert judge.verdict(challenger).gates[0].units == 1
        assert judge.verdict(challenger).gates[0].difference == -1


@pytest.mark.parametrize("session", [None, "s"])
def test_a_second_ending_of_an_exchange_changes_nothing(new_desk: NewDesk, accuracy: Gate, session: str | None) -> None:
    desk = new_desk(accuracy)
    for name in "ab":
        desk.end(exchange(name, "Category: refund", session=session, at=desk.now[0]), name == "a")
        desk.label(name)
    desk.now[0] += 100
    before = desk.judge.verdict("challenger")
    for ending in (True, False, State.SHED):
        desk.end(exchange("b", "Category: refund", session=session, at=desk.now[0] - 50), ending)
    assert desk.judge.verdict("challenger") == before
    assert before.gates[0].difference == -0.5


def test_a_changed_label_replaces_the_old_one(new_desk: NewDesk, accuracy: Gate) -> None:
    judge = new_desk(accuracy).judge
    judge.ended(exchange("a", "Category: refund"), "challenger", compared("Category: other"))
    judge.feedback("a", "refund")
    assert judge.verdict("challenger").gates[0].difference == -1
    assert judge.feedback("a", "other")
    gate = judge.verdict("challenger").gates[0]
    assert (gate.units, gate.difference) == (1, 1)


def test_pending_labels_are_bounded_and_an_empty_one_is_ignored(accuracy: Gate) -> None:
    judge = Judge([accuracy], max_pending_labels=2, clock=lambda: 0.0)
    for name in "abc":
        judge.feedback(name, "refund")
    for name in "abc":
        judge.ended(exchange(name, "Category: refund"), "challenger", compared("Category: refund"))
    assert judge.verdict("challenger").gates[0].units == 2
    assert not judge.feedback("c", "  ")
    assert judge.verdict("challenger").gates[0].units == 2
    assert judge.verdict("challenger").gates[0].difference == 0


def test_an_exchange_that_has_not_ended_is_refused(accuracy: Gate) -> None:
    with pytest.raises(ValueError, match="not ended"):
        Judge([accuracy]).ended(exchange("a", "x"), "challenger", Ending(State.PENDING))


def test_any_order_gives_the_same_verdict_and_so_does_a_restart(new_desk: NewDesk, accuracy: Gate) -> None:
    gates = (accuracy, Gate("missing", 0.2), Gate("agreement", 0.1))
    desk = new_desk(*gates)
    dice = random.Random(7)
    endings: list[bool | State] = [
        True,
        True,
        False,
        State.SHED,
        State.FAILED,
        State.EXPIRED,
        State.CANCELLED,
    ]
    for index in range(300):
        name, session = str(index), dice.choice([None, None, f"s{dice.randrange(40)}"])
        one = exchange(name, dice.choice(["Category: refund", "?"]), session=session, at=desk.now[0])
        desk.end(one, dice.choice(endings))
        if dice.random() < 0.7:
            desk.label(name)
        desk.now[0] += dice.choice([1.0, 20.0])
        if index % 50 == 0:
            desk.judge.verdict("challenger")  # looking changes nothing
    desk.now[0] += 3600
    expected = json.dumps(desk.judge.verdict("challenger").as_dict())
    assert json.loads(expected)["gates"][0]["units"] > 100
    for seed in range(20):
        replayed = Judge(gates, session_idle_s=60.0, clock=lambda: desk.now[0])
        events = desk.fed if seed == 0 else random.Random(seed).sample(desk.fed, len(desk.fed))
        for number, event in enumerate(events):
            event(replayed)
            if number == len(events) // 2:
                replayed.verdict("challenger")
        assert json.dumps(replayed.verdict("challenger").as_dict()) == expected
