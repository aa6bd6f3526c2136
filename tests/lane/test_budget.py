"""What the shadow may take: tokens a second, and nothing while the champion is under pressure."""

from __future__ import annotations

import asyncio

import pytest
from tests.builders import (
    Clock,
    Offer,
    WatchedEngine,
    answer,
    exchange,
    in_loop,
    offers,
    running,
    shadow_spec,
    turns,
)

from understudy.lane import lane as lane_module
from understudy.lane.budget import BURST_S, TokenBudget
from understudy.lane.lane import num_tokens


def test_no_limit_never_waits() -> None:
    budget = TokenBudget(None, Clock())
    assert [budget.wait_s(10**12) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_two_seconds_worth_may_be_spent_at_once_and_then_the_rate_holds() -> None:
    clock = Clock()
    budget = TokenBudget(100.0, clock)
    assert budget.wait_s(150) == 0.0
    assert budget.wait_s(50) == 0.0
    assert budget.wait_s(1) == pytest.approx(0.01)
    assert budget.wait_s(30) == pytest.approx(0.3)  # asking costs nothing
    clock.advance(0.3)
    assert budget.wait_s(30) == pytest.approx(0.0, abs=1e-9)


def test_what_is_not_spent_is_kept_for_two_seconds_only() -> None:
    clock = Clock()
    budget = TokenBudget(100.0, clock)
    clock.advance(3600.0)
    assert budget.wait_s(200) == 0.0
    assert budget.wait_s(1) > 0.0


def test_more_than_the_bucket_holds_is_spent_when_it_is_full_and_paid_back() -> None:
    clock = Clock()
    budget = TokenBudget(100.0, clock)
    assert budget.wait_s(1) == 0.0
    assert budget.wait_s(1000) == pytest.approx(0.01)
    clock.advance(0.5)
    assert budget.wait_s(1000) == 0.0  # 200 were there: 800 are owed
    assert budget.wait_s(100) == pytest.approx(9.0)
    clock.advance(8.9)
    assert budget.wait_s(100) > 0.0
    clock.advance(0.2)
    assert budget.wait_s(100) == 0.0


def test_over_a_long_time_no_more_is_spent_than_the_rate() -> None:
    clock = Clock()
    budget, spent = TokenBudget(50.0, clock), 0
    for step in range(4000):
        tokens = 1 + (step * 37) % 90
        if budget.wait_s(tokens) == 0.0:
            spent += tokens
        clock.advance(0.1)
    assert 50.0 * 400 * 0.95 < spent <= 50.0 * (400 + BURST_S)


def test_a_wait_that_was_waited_is_enough() -> None:
    """No matter how the floats round, waiting comes to an end."""
    for rate in (0.1, 3.0, 7.7, 1e6 / 3):
        clock = Clock()
        budget = TokenBudget(rate, clock)
        budget.wait_s(int(rate * BURST_S) + 1)
        for _ in range(100):
            looks = 0
            while (wait_s := budget.wait_s(1)) > 0.0:
                clock.advance(max(wait_s, 1e-9))
                looks += 1
            assert looks <= 3


@pytest.mark.parametrize(
    ("score", "generate", "num_answers", "expected"),
    [
        (True, False, 1, 3 + 2),
        (False, True, 1, 3 + 2),
        (True, True, 1, (3 + 2) * 2),
        (True, False, 3, 3 * 3 + 6),  # each answer is read behind the prompt
        (False, True, 3, 3 + 6),  # one prompt, three answers
        (True, True, 3, (3 * 3 + 6) + (3 + 6)),
    ],
)
def test_the_tokens_of_an_exchange(score: bool, generate: bool, num_answers: int, expected: int) -> None:
    given = exchange("x", *[answer(7, 8)] * num_answers)
    assert num_tokens(given, shadow_spec(score=score, generate=generate)) == expected


@in_loop
async def test_what_the_budget_does_not_allow_before_the_deadline_is_shed() -> None:
    engine = WatchedEngine()
    async with running(engine, spec=shadow_spec(max_tokens_per_s=5.0, deadline_s=1.5, score=False)) as stage:
        for each in offers(3):  # five tokens each, ten are there
            stage.lane.offer(each)
        await stage.ear.hears(2)
        assert stage.counts()["compared"] == 2
        stage.lane.offer(Offer(exchange("large", answer(*range(100)))))  # needs a full bucket: 2 s
        await turns(50)
        assert stage.counts()["shed"] == {"budget": 1}
        assert stage.counts()["pending"] == 1  # may go on in 1 s
        assert engine.calls.count("prepare") == 2
        stage.lane.pause()
        await stage.ear.hears(4)


@in_loop
async def test_what_waits_for_the_budget_starts_when_it_is_there() -> None:
    engine = WatchedEngine()
    spec = shadow_spec(max_tokens_per_s=10_000.0, score=False)
    async with running(engine, spec=spec) as stage:
        stage.lane.offer(Offer(exchange("all", answer(*range(19_997)))))
        await stage.ear.hears(1)
        stage.lane.offer(Offer(exchange("next", answer(*range(7)))))  # 10 tokens: 1 ms by the lane's clock
        await turns(50)
        assert stage.counts()["pending"] == 1
        assert engine.calls.count("prepare") == 1
        stage.clock.advance(0.002)
        await stage.ear.hears(2)
        assert stage.counts()["compared"] == 2


@in_loop
async def test_each_challenger_has_a_budget_of_its_own() -> None:
    async with running(
        WatchedEngine("a"), WatchedEngine("b"), spec=shadow_spec(max_tokens_per_s=5.0, score=False)
    ) as stage:
        for each in offers(2):
            stage.lane.offer(each)
        await stage.ear.hears(4)
        assert stage.counts("a")["compared"] == stage.counts("b")["compared"] == 2


@in_loop
async def test_pressure_holds_the_start_back_and_lets_it_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "PRESSURE_POLL_S", 0.001)
    engine, load, looked = WatchedEngine(), [3], asyncio.Semaphore(0)

    def champion_load() -> int:
        looked.release()
        return load[0]

    async with running(engine, spec=shadow_spec(yield_above=2), champion_load=champion_load) as stage:
        stage.lane.offer(Offer())
        for _ in range(3):
            await looked.acquire()
        assert not engine.calls
        load[0] = 2  # not above
        await stage.ear.hears(1)
        assert stage.ear.words() == ["compared"]


@in_loop
async def test_pressure_spends_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "PRESSURE_POLL_S", 0.001)
    load, looked = [1000], asyncio.Semaphore(0)

    def champion_load() -> int:
        looked.release()
        return load[0]

    spec = shadow_spec(max_tokens_per_s=2.5, score=False)  # the bucket holds this one exchange
    async with running(WatchedEngine(), spec=spec, champion_load=champion_load) as stage:
        stage.lane.offer(Offer())
        for _ in range(3):
            await looked.acquire()
        load[0] = 0
        await stage.ear.hears(1)
        assert stage.ear.words() == ["compared"]


@in_loop
async def test_pressure_does_not_touch_what_is_already_running() -> None:
    engine, load = WatchedEngine(gate=asyncio.Event()), [0]
    async with running(engine, champion_load=lambda: load[0]) as stage:
        stage.lane.offer(Offer())
        await engine.called("generate")
        load[0] = 1000
        assert engine.gate is not None
        engine.gate.set()
        await stage.ear.hears(1)
        assert stage.ear.words() == ["compared"]
