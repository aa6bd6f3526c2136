"""A user's own comparator: what it is given, and that nothing it does can hurt an exchange."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from tests.builders import Ear, Offer, answer, exchange, in_loop, observation, shadow_spec

from understudy.compare import Comparators, callables
from understudy.compare.callables import Case
from understudy.compare.options import CompareSpec
from understudy.engines.fake import FakeEngine
from understudy.errors import ConfigError
from understudy.lane.guard import Guard
from understudy.lane.lane import Lane
from understudy.types import State

HANG = threading.Event()


def comparing(monkeypatch: pytest.MonkeyPatch, function: Any, guard: Guard | None = None) -> Comparators:
    module = ModuleType("my_comparators")
    module.tone = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_comparators", module)
    spec = CompareSpec(use=("exact",), callables={"tone": "my_comparators:tone"})
    return Comparators(spec, guard or Guard())


def values(comparators: Comparators, *mine: Any) -> dict[str, float]:
    both = (answer(1, text="a"), answer(2, text="b"))
    return dict(comparators.compare(exchange("x", *both), observation(*(mine or both))).values)


def test_it_gets_both_texts_and_the_case_and_its_mean_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, Case]] = []

    def tone(champion: str, challenger: str, case: Case) -> float:
        seen.append((champion, challenger, case))
        return len(seen)

    found = values(comparing(monkeypatch, tone), answer(1, text="c"), answer(2, text="d"))
    assert found == {"exact_match": 1.0, "custom_tone": 1.5}
    assert [each[:2] for each in seen] == [("a", "c"), ("b", "d")]  # the champion first
    assert seen[0][2].dry_run
    assert seen[0][2].exchange_id == "x"


def test_it_is_not_asked_about_answers_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = values(comparing(monkeypatch, lambda *_: pytest.fail("asked")), answer(1))
    assert set(found) == {"exact_match"}


def raising(*_: Any) -> float:
    raise ZeroDivisionError("its own")


@pytest.mark.parametrize("broken", [raising, lambda *_: "high", lambda *_: None, lambda: 1.0])
def test_one_that_raises_or_gives_no_number_is_counted_and_the_rest_is_compared(
    monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    guard = Guard()
    assert values(comparing(monkeypatch, broken, guard)) == {"exact_match": 1.0}
    assert guard.swallowed == {"compare custom_tone": 1}


def test_no_finite_number_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert values(comparing(monkeypatch, lambda *_: float("nan"))) == {"exact_match": 1.0}


def test_one_that_hangs_is_left_behind_and_not_asked_again_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callables, "TIMEOUT_S", 0.05)
    entered: list[int] = []

    def hanging(*_: Any) -> float:
        entered.append(1)
        HANG.wait(20)
        return 1.0

    guard = Guard()
    comparators = comparing(monkeypatch, hanging, guard)
    try:
        assert values(comparators) == values(comparators) == {"exact_match": 1.0}
        assert guard.swallowed == {"compare custom_tone": 2}
        assert len(entered) == 1
        (left,) = [thread for thread in threading.enumerate() if thread.name == "compare-custom_tone"]
        assert left.daemon  # it does not keep a server from ending
    finally:
        HANG.set()


@pytest.mark.parametrize("path", ["no_such_module:f", "json:no_such_function", "json:__name__"])
def test_one_that_cannot_be_imported_is_an_error_of_the_configuration(path: str) -> None:
    with pytest.raises(ConfigError, match=f"compare.callables.tone: '{path}'"):
        Comparators(CompareSpec(callables={"tone": path}))


@in_loop
async def test_in_the_lane_the_exchange_ends_compared_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparators run in a thread: while one is at work the event loop, and with it the answers, go on."""
    started, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> float:
        started.set()
        assert go_on.wait(10)
        return 1.0

    ear = Ear()
    lane = Lane([FakeEngine()], shadow_spec(), ear, compare=comparing(monkeypatch, slow))
    lane.start()
    lane.offer(Offer(exchange("x")))
    await asyncio.to_thread(started.wait, 10)
    assert lane.totals()["pending"] == 1  # and we are here, in the loop
    go_on.set()
    (ending,) = await ear.hears(1)
    assert ending.state is State.COMPARED
    assert ending.comparison is not None
    assert ending.comparison.values["custom_tone"] == 1.0
    await lane.close()


@in_loop
async def test_many_exchanges_at_once_lose_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time: nobody's waiting counts as somebody's hanging, and no thread is taken from others."""
    monkeypatch.setattr(callables, "TIMEOUT_S", 0.25)
    at_once: list[int] = []
    most = [0]

    def slow(*_: Any) -> float:
        at_once.append(1)
        most.append(len(at_once))
        HANG.wait(0.02) if not HANG.is_set() else None
        at_once.pop()
        return 1.0

    comparators = comparing(monkeypatch, slow, guard := Guard())
    both = answer(1, text="a")
    found = await asyncio.gather(*(comparators(exchange(str(n), both), observation(both)) for n in range(20)))
    assert [each.values["custom_tone"] for each in found] == [1.0] * 20
    assert not guard.swallowed
    assert max(most) == 1
