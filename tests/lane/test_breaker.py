"""The breaker opens after faults in a row, sheds, lets exactly one try, and closes when that one succeeds."""

from __future__ import annotations

import asyncio

from tests.builders import (
    Clock,
    Offer,
    WatchedEngine,
    exchange,
    in_loop,
    offers,
    running,
    shadow_spec,
    turns,
    word,
)

from understudy.errors import Unsupported
from understudy.lane.breaker import Breaker


def test_only_faults_in_a_row_open_it() -> None:
    breaker = Breaker(3, 30.0, Clock())
    for _ in range(5):
        breaker.failed("x")
        breaker.failed("x")
        breaker.succeeded()
    assert breaker.state == "closed"
    for _ in range(3):
        assert breaker.admits()
        breaker.failed("it broke")
    assert breaker.state == "open"
    assert breaker.last_fault == "it broke"
    assert not breaker.admits()


def test_after_the_cooldown_exactly_one_may_try() -> None:
    clock = Clock()
    breaker = Breaker(1, 30.0, clock)
    breaker.failed("x")
    clock.advance(29.9)
    assert not breaker.admits()
    clock.advance(0.1)
    assert [breaker.admits() for _ in range(5)] == [True, False, False, False, False]
    assert breaker.state == "trying"
    breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.admits()


def test_a_try_that_fails_costs_a_whole_cooldown_again() -> None:
    clock = Clock()
    breaker = Breaker(5, 30.0, clock)
    for _ in range(5):
        breaker.failed("x")
    clock.advance(30.0)
    assert breaker.admits()
    breaker.failed("still")  # one, and not five
    assert breaker.state == "open"
    clock.advance(29.9)
    assert not breaker.admits()
    clock.advance(0.1)
    assert breaker.admits()


def test_a_try_that_is_abandoned_lets_the_next_one_try() -> None:
    clock = Clock()
    breaker = Breaker(1, 30.0, clock)
    breaker.failed("x")
    clock.advance(30.0)
    assert breaker.admits()
    breaker.abandoned()
    assert breaker.state == "open"
    assert breaker.admits()
    assert not breaker.admits()


@in_loop
async def test_a_broken_challenger_is_left_alone_and_taken_up_again_when_it_works() -> None:
    engine = WatchedEngine(fault=RuntimeError("it broke"))
    spec = shadow_spec(breaker_faults=3, breaker_cooldown_s=30.0, max_concurrency=1, deadline_s=1e6)
    async with running(engine, WatchedEngine("other"), spec=spec) as stage:
        breaker = stage.lane.sides["fake"].breaker
        for each in offers(10):
            stage.lane.offer(each)
        await stage.ear.hears(20)
        assert stage.counts()["failed"] == {"RuntimeError": 3}
        assert stage.counts()["shed"] == {"breaker_open": 7}
        assert engine.calls.count("prepare") == 3
        assert breaker.state == "open"
        shed = next(ending for _, name, ending in stage.ear.endings if name == "fake" and ending.state == "shed")
        assert shed.detail == "RuntimeError: it broke"
        assert stage.counts("other")["compared"] == 10  # each challenger has a breaker of its own

        stage.clock.advance(30.0)
        engine.fault = None
        for each in offers(5):
            stage.lane.offer(each)
        await stage.ear.hears(30)
        assert breaker.state == "closed"
        assert stage.counts()["compared"] == 5


@in_loop
async def test_of_several_that_wait_exactly_one_tries() -> None:
    engine = WatchedEngine(fault=RuntimeError("it broke"))
    spec = shadow_spec(breaker_faults=1, breaker_cooldown_s=30.0, max_concurrency=4, deadline_s=1e6)
    async with running(engine, spec=spec) as stage:
        stage.lane.offer(Offer())
        await stage.ear.hears(1)
        stage.clock.advance(30.0)
        engine.fault, engine.gate = None, asyncio.Event()
        for each in offers(4):
            stage.lane.offer(each)
        await stage.ear.hears(4)
        await turns(20)
        assert stage.counts()["shed"] == {"breaker_open": 3}
        assert engine.calls.count("prepare") == 1 + 1
        assert stage.lane.sides["fake"].breaker.state == "trying"
        engine.gate.set()
        await stage.ear.hears(5)
        assert stage.counts()["compared"] == 1
        assert stage.lane.sides["fake"].breaker.state == "closed"


@in_loop
async def test_a_try_that_is_paused_does_not_stay_the_only_one() -> None:
    engine = WatchedEngine(fault=RuntimeError("it broke"))
    spec = shadow_spec(breaker_faults=1, breaker_cooldown_s=30.0, deadline_s=1e6)
    async with running(engine, spec=spec) as stage:
        stage.lane.offer(Offer())
        await stage.ear.hears(1)
        stage.clock.advance(30.0)
        engine.fault, engine.gate = None, asyncio.Event()
        stage.lane.offer(Offer(exchange("tries")))
        await engine.called("generate")
        stage.lane.pause()
        await stage.ear.hears(2)
        stage.lane.resume()
        engine.gate.set()
        stage.lane.offer(Offer(exchange("tries again")))
        ending = (await stage.ear.hears(3))[-1]
        assert word(ending) == "compared"
        assert stage.lane.sides["fake"].breaker.state == "closed"


@in_loop
async def test_a_try_that_is_unsupported_does_not_stay_the_only_one_and_closes_nothing() -> None:
    engine = WatchedEngine(fault=RuntimeError("it broke"))
    spec = shadow_spec(breaker_faults=1, breaker_cooldown_s=30.0, deadline_s=1e6)
    async with running(engine, spec=spec) as stage:
        stage.lane.offer(Offer())
        await stage.ear.hears(1)
        stage.clock.advance(30.0)
        engine.fault = Unsupported("too_long", "no")
        stage.lane.offer(Offer())
        await stage.ear.hears(2)
        assert stage.lane.sides["fake"].breaker.state == "open"
        engine.fault = None
        stage.lane.offer(Offer())
        await stage.ear.hears(3)
        assert stage.ear.words() == ["failed RuntimeError", "shed too_long", "compared"]


@in_loop
async def test_unsupported_exchanges_open_nothing_however_many() -> None:
    engine = WatchedEngine(fault=Unsupported("too_long", "no"))
    async with running(engine, spec=shadow_spec(breaker_faults=2)) as stage:
        for each in offers(10):
            stage.lane.offer(each)
        await stage.ear.hears(10)
        assert stage.counts()["shed"] == {"too_long": 10}


@in_loop
async def test_deadlines_in_a_row_open_it() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(breaker_faults=2, deadline_s=0.02, max_concurrency=1)) as stage:
        for _ in range(2):
            stage.lane.offer(Offer())
            await stage.ear.hears(stage.counts()["sampled"] + 1)
        stage.lane.offer(Offer())
        await stage.ear.hears(3)
        assert stage.ear.words() == ["expired", "expired", "shed breaker_open"]
