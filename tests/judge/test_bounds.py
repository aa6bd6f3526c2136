"""What a judge keeps is bounded, and what it has let go stays counted."""

from __future__ import annotations

import random
from math import inf

import pytest

from understudy.judge.base import Reading
from understudy.judge.gates import Gate
from understudy.judge.units import MAX_MINUTES, Entry, Tally, Units
from understudy.judge.verdict import Judge

from .conftest import PATTERN, compared, exchange

IDLE_S = 60.0


def judge(max_exchanges: int, *gates: Gate) -> Judge:
    given = gates or (Gate("accuracy", 0.1, pattern=PATTERN), Gate("agreement", 0.1), Gate("missing", 0.05))
    return Judge(given, session_idle_s=IDLE_S, max_exchanges=max_exchanges, clock=lambda: 1e6)


def feed(one: Judge, name: str, *, session: str | None = None, at: float = 0.0, label: str | None = "refund") -> None:
    number = sum(map(ord, name))
    said = "Category: refund" if number % 3 else f"Category: {name}"
    ending = compared("Category: refund", agreement=number % 5 / 4)
    one.ended(exchange(name, said, session=session, at=at), "challenger", ending)
    if label is not None:
        one.feedback(name, label)


def units_of(one: Judge) -> Units:
    return one._units["challenger"]


def sizes(one: Judge) -> dict[str, int]:
    kept = units_of(one)
    names = ("_rows", "_ids", "_arrived", "_session", "_kept", "_counted", "_kept_values", "_members", "_names")
    more = ("_sessions", "_counted_sessions", "_closed", "_closed_in_order", "_open_sessions", "_due")
    return {name: len(getattr(kept, name)) for name in names + more} | {
        "labels": len(one._labels),
        "times": len(one._labelled_unix_s),
    }


@pytest.mark.parametrize("in_session", [1, 4])
def test_what_is_forgotten_stays_counted_and_memory_is_bounded(in_session: int) -> None:
    bounded, whole = judge(40), judge(10**6)
    for number in range(2000):
        session = None if in_session == 1 else f"s{number // in_session}"
        for one in (bounded, whole):
            feed(one, f"{number:06d}", session=session, at=100.0 * (number // in_session) + number % in_session)
        if number % 100 == 99:
            bounded.settle()
    assert bounded.verdict("challenger") == whole.verdict("challenger")
    assert whole.verdict("challenger").gates[0].units == 2000 // in_session
    assert max(sizes(bounded).values()) <= 2 * 40 + 100  # twice: the columns are cut now and then
    assert sizes(bounded)["_rows"] == 40
    assert len(units_of(whole)._rows) == 2000
    assert len(units_of(bounded)._readings) < 20
    assert max(len(each.per_minute) for each in units_of(bounded).tallies) <= MAX_MINUTES


def test_the_rate_of_a_day_is_the_same_when_old_minutes_are_gone() -> None:
    tally, answered = Tally(), Reading(1.0, 1.0, 1.0, 0.0)
    for minute in range(5 * MAX_MINUTES):
        tally.count(answered, minute, +1)
        if minute % 997 == 0:
            assert tally.units_per_hour(60.0 * (minute + 1)) == 60.0
    assert len(tally.per_minute) <= MAX_MINUTES
    tally.count(answered, 3, -1)
    tally.count(answered, 5 * MAX_MINUTES - 1, -1)
    assert 3 not in tally.per_minute
    assert tally.readings[answered] == 5 * MAX_MINUTES - 2
    assert tally.units_per_hour(60.0 * 5 * MAX_MINUTES) == 60.0 * 1439 / 1440
    late = 60.0 * (5 * MAX_MINUTES + 5000)
    tally.count(answered, int(late // 60) - 1, +1)
    assert tally.units_per_hour(late) == pytest.approx(60.0 / 1440)  # of a whole day, although most of it is gone


def test_a_label_changes_what_is_known_and_nothing_else() -> None:
    one = judge(10)
    for number in range(30):
        feed(one, f"{number:06d}", label=None)
    assert one.verdict("challenger").gates[0].units == 0
    one.feedback("000003", "refund")  # too late
    assert one.verdict("challenger").gates[0].units == 0
    one.feedback("000025", "refund")
    assert one.verdict("challenger").gates[0].units == 1


def test_a_label_stays_for_a_challenger_that_still_knows_the_exchange() -> None:
    one = judge(2)
    feed(one, "a")
    one.ended(exchange("a", "Category: refund"), "slow", compared("Category: refund"))
    for name in ("b", "c", "d"):
        feed(one, name)
    assert one._labels["a"] == "refund"
    assert one.verdict("slow").gates[0].units == 1


def test_a_session_that_never_rests_counts_when_its_first_exchange_goes() -> None:
    one = judge(5)
    for number in range(5):
        feed(one, f"{number:06d}", session="s", at=1e6 + number)
    assert (one.verdict("challenger").gates[2].units, one.verdict("challenger").open_sessions) == (0, 1)
    feed(one, "000005", session="s", at=1e6 + 5)
    before = one.verdict("challenger")
    assert (before.gates[2].units, before.open_sessions) == (1, 0)
    feed(one, "000006", session="s", at=1e6 + 6)
    one.feedback("000007", "refund")
    feed(one, "000007", session="s", at=1e6 + 7, label=None)
    assert "000007" not in one._labels
    one.feedback("000004", "other")
    assert one.verdict("challenger") == before  # the same person, and no new evidence


class _Answered:
    def keep(self) -> None: ...

    def read(self, kept: object, label: str | None) -> Reading:
        return Reading(1.0, 1.0, 1.0, 0.0)


def complete(arrivals: list[float], now_s: float) -> bool:
    ordered = sorted(arrivals)
    return any(after - here >= IDLE_S for here, after in zip(ordered, [*ordered[1:], now_s], strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_sessions_count_when_they_are_complete_in_whatever_order_they_are_told(seed: int) -> None:
    dice = random.Random(seed)
    kept = Units([_Answered()], {}, IDLE_S)  # type: ignore[list-item]
    told: dict[str, list[float]] = {}
    now_s = 0.0
    for number in range(400):
        now_s += dice.uniform(0.0, 30.0)
        session, arrived_s = f"s{dice.randrange(12)}-{number // 100}", max(0.0, now_s - dice.uniform(0.0, 400.0))
        told.setdefault(session, []).append(arrived_s)
        kept.add(f"{number}", Entry(arrived_s, session, (True,)))
        if dice.random() < 0.3:
            kept.relabel(f"{dice.randrange(number + 1)}")
        if dice.random() < 0.4:
            num_complete = sum(complete(arrivals, now_s) for arrivals in told.values())
            assert kept.settle(now_s) == len(told) - num_complete
            assert kept.tallies[0].readings.total() == num_complete
    assert kept.settle(inf) == 0
    assert kept.tallies[0].readings.total() == len(told)


def test_settling_does_not_look_at_sessions_that_cannot_be_complete_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    one = judge(1000)
    for number in range(50):
        feed(one, f"{number:06d}", session=f"s{number}", at=1e6)
    looked: list[int] = []
    first_burst = Units._first_burst

    def counted(self: Units, session: int, now_unix_s: float) -> tuple[list[int], bool]:
        looked.append(session)
        return first_burst(self, session, now_unix_s)

    monkeypatch.setattr(Units, "_first_burst", counted)
    assert units_of(one).settle(1e6 + IDLE_S - 1) == 50
    assert looked == []
    assert units_of(one).settle(1e6 + IDLE_S) == 0
    assert len(looked) == 50


class _Arrival:
    """What a session says depends on which of its exchanges count, and on their labels."""

    def keep(self) -> None: ...

    def read(self, kept: object, label: str | None) -> Reading:
        assert isinstance(kept, float)
        return Reading(0.0 if label is None else 1.0, kept / 1e5, kept / 1e5, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_sessions_say_the_same_however_they_came_and_whenever_somebody_looked(seed: int) -> None:
    dice, labels, told, now_s = random.Random(seed), dict[str, str](), dict[str, Entry](), 0.0
    kept = Units([_Arrival()], labels, IDLE_S)  # type: ignore[list-item]
    for number in range(300):
        now_s += dice.uniform(0.0, 30.0)
        ahead_s = dice.choice([0.0, 0.0, dice.uniform(-400.0, 0.0), dice.uniform(0.0, 200.0)])  # a clock was set
        arrived_s = float(round(max(0.0, now_s + ahead_s), -1))  # with ties
        told[f"{number}"] = Entry(arrived_s, f"s{dice.randrange(6)}-{number // 100}", (arrived_s,))
        kept.add(f"{number}", told[f"{number}"])
        if dice.random() < 0.3:
            labelled = f"{dice.randrange(number + 1)}"
            labels[labelled] = "x"
            kept.relabel(labelled)
        if dice.random() < 0.4:
            fresh = Units([_Arrival()], labels, IDLE_S)  # type: ignore[list-item]
            for name in dice.sample(list(told), len(told)):
                fresh.add(name, told[name])
            assert kept.settle(now_s) == fresh.settle(now_s)
            assert kept.tallies == fresh.tallies


def test_a_gap_that_is_known_completes_a_session_at_once_whatever_was_seen_before() -> None:
    kept = Units([_Answered()], {}, IDLE_S)  # type: ignore[list-item]
    kept.add("a", Entry(0.0, "s", (True,)))
    kept.add("b", Entry(50.0, "s", (True,)))
    assert kept.settle(70.0) == 1  # nothing to look at before 110
    kept.add("c", Entry(200.0, "s", (True,)))  # the clock was set back
    assert kept.settle(75.0) == 0


def test_an_exchange_more_costs_the_same_however_long_its_session_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a session were asked for their arrival at each new one: 20,000 of one session took 41 s of the loop."""
    looks, bursts = [0], [0]
    arrived_at, first_burst = Units._arrived_at, Units._first_burst

    def counted_look(self: Units, row: int) -> float:
        looks[0] += 1
        return arrived_at(self, row)

    def counted_burst(self: Units, session: int, now_unix_s: float) -> tuple[list[int], bool]:
        bursts[0] += 1
        return first_burst(self, session, now_unix_s)

    monkeypatch.setattr(Units, "_arrived_at", counted_look)
    monkeypatch.setattr(Units, "_first_burst", counted_burst)
    kept = Units([_Answered()], {}, IDLE_S)  # type: ignore[list-item]
    for number in range(600):
        kept.add(f"{number}", Entry(float(number), "s", (True,)))
        kept.relabel(f"{number}")
    assert looks[0] <= 5 * 600
    for number in range(600, 1200):  # and somebody looks at the verdict each second
        kept.add(f"{number}", Entry(float(number), "s", (True,)))
        kept.relabel(f"{number}")
        assert kept.settle(float(number)) == 1
    assert bursts[0] <= 2 * 600 / IDLE_S
    assert kept.settle(1200 + IDLE_S) == 0
    looks[0] = bursts[0] = 0
    for number in range(2000, 2600):  # after its gap
        kept.add(f"{number}", Entry(float(number), "s", (True,)))
        assert kept.settle(float(number)) == 0
    assert bursts[0] == 0
    assert looks[0] <= 5 * 600
    assert kept.tallies[0].readings.total() == 1
