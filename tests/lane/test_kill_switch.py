"""pause(): nothing starts, what waits is shed, what runs is aborted and shed; no call reaches an engine."""

from __future__ import annotations

import asyncio

import pytest
from tests.builders import Offer, WatchedEngine, exchange, in_loop, offers, running, shadow_spec, turns


@in_loop
async def test_after_pause_no_call_reaches_the_engine() -> None:
    engine = WatchedEngine()
    async with running(engine) as stage:
        stage.lane.offer(Offer(exchange("before")))
        await stage.ear.hears(1)
        calls = list(engine.calls)
        stage.lane.pause()
        for each in offers(50):
            stage.lane.offer(each)
        await stage.ear.hears(51)
        await turns(50)
        assert engine.calls == calls
        assert stage.counts()["compared"] == 1
        assert stage.counts()["shed"] == {"paused": 50}


@in_loop
async def test_what_was_offered_but_not_yet_taken_in_is_shed() -> None:
    engine = WatchedEngine()
    async with running(engine) as stage:
        stage.lane.offer(Offer())
        stage.lane.pause()
        await stage.ear.hears(1)
        assert stage.ear.words() == ["shed paused"]
        assert not engine.calls


@in_loop
async def test_what_waits_in_the_queue_is_shed_at_once() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(max_concurrency=1)) as stage:
        for each in offers(5):
            stage.lane.offer(each)
        await engine.called("generate")
        await turns(20)
        stage.lane.pause()
        assert stage.ear.words() == ["shed paused"] * 4  # before anything else runs
        await stage.ear.hears(5)
        assert engine.calls == ["prepare", "score", "generate"]


@pytest.mark.parametrize("where", ["prepare", "score", "generate"])
@in_loop
async def test_what_runs_is_aborted_in_the_engine_wherever_it_is(where: str) -> None:
    engine = WatchedEngine(gates={where: asyncio.Event()})
    async with running(engine, spec=shadow_spec(max_concurrency=3)) as stage:
        for each in offers(3):
            stage.lane.offer(each)
        await engine.called(where, 3)
        calls = list(engine.calls)
        stage.lane.pause()
        await stage.ear.hears(3)
        assert stage.ear.words() == ["shed paused"] * 3
        assert engine.aborted == 3
        assert engine.calls == calls  # the step after it was not begun
        assert stage.lane.sides["fake"].breaker.state == "closed"
        assert stage.lane.guard.swallowed == {}


@in_loop
async def test_what_would_go_on_in_this_very_turn_does_not() -> None:
    """The engine's call has its result already, its task has not run since."""
    gate = asyncio.Event()
    engine = WatchedEngine(gates={"score": gate})
    async with running(engine) as stage:
        stage.lane.offer(Offer())
        await engine.called("score")
        gate.set()
        stage.lane.pause()
        await stage.ear.hears(1)
        assert stage.ear.words() == ["shed paused"]
        assert engine.calls == ["prepare", "score"]


@in_loop
async def test_a_task_that_is_cancelled_before_its_first_step_ends_too() -> None:
    engine = WatchedEngine()
    async with running(engine) as stage:
        side = stage.lane.sides["fake"]
        started: list[int] = []

        def pause_at_once() -> None:
            """Every turn; a task that is seen here for the first time has not run yet."""
            if side.running:
                started.append(engine.health_asked)
                stage.lane.pause()
            else:
                asyncio.get_running_loop().call_soon(pause_at_once)

        pause_at_once()
        stage.lane.offer(Offer())
        await stage.ear.hears(1)
        assert started == [1]  # asked at the intake; the task would have asked again
        assert engine.health_asked == 1
        assert stage.ear.words() == ["shed paused"]
        assert not engine.calls
        assert not side.running


@in_loop
async def test_a_task_that_has_ended_already_keeps_its_ending() -> None:
    """Done, but its callback has not run: cancel() comes too late, and must not count it twice."""
    engine = WatchedEngine()
    async with running(engine) as stage:
        side = stage.lane.sides["fake"]

        def pause_when_done() -> None:
            if any(task.done() for task in side.running):
                stage.lane.pause()
            elif not stage.ear.endings:
                asyncio.get_running_loop().call_soon(pause_when_done)

        pause_when_done()
        stage.lane.offer(Offer())
        await stage.ear.hears(1)
        await turns(10)
        assert stage.ear.words() == ["compared"]
        assert stage.lane.paused


@in_loop
async def test_what_waits_for_pressure_to_fall_is_shed() -> None:
    engine, polled = WatchedEngine(), asyncio.Event()

    def load() -> int:
        polled.set()
        return 1000

    async with running(engine, champion_load=load) as stage:
        stage.lane.offer(Offer())
        await polled.wait()
        stage.lane.pause()
        await stage.ear.hears(1)
        assert stage.ear.words() == ["shed paused"]
        assert not engine.calls


@in_loop
async def test_pause_stops_every_challenger_and_twice_is_once() -> None:
    engines = WatchedEngine("a", gate=asyncio.Event()), WatchedEngine("b", gate=asyncio.Event())
    async with running(*engines) as stage:
        stage.lane.offer(Offer())
        await engines[1].called("generate")
        stage.lane.pause()
        stage.lane.pause()
        await stage.ear.hears(2)
        await turns(10)
        assert stage.ear.words() == ["shed paused"] * 2
        assert [engine.aborted for engine in engines] == [1, 1]


@in_loop
async def test_resume_shadows_again_with_every_turn_given_back() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(max_concurrency=2)) as stage:
        for each in offers(5):
            stage.lane.offer(each)
        await engine.called("generate", 2)
        stage.lane.pause()
        await stage.ear.hears(5)
        stage.lane.resume()
        for each in offers(5):
            stage.lane.offer(each)
        await engine.called("generate", 4)
        assert engine.gate is not None
        engine.gate.set()
        await stage.ear.hears(10)
        assert stage.counts()["shed"] == {"paused": 5}
        assert stage.counts()["compared"] == 5
        assert engine.most_inside == 2


@in_loop
async def test_an_abort_that_takes_its_time_does_not_hold_pause_up() -> None:
    """pause() is one synchronous step; the engine may still be cleaning up."""
    cleaned = asyncio.Event()

    class Slow(WatchedEngine):
        async def _enter(self, name: str) -> None:
            try:
                await super()._enter(name)
            except asyncio.CancelledError:
                await cleaned.wait()
                raise

    engine = Slow(gates={"generate": asyncio.Event()})
    async with running(engine) as stage:
        stage.lane.offer(Offer())
        await engine.called("generate")
        stage.lane.pause()
        await turns(20)
        assert stage.counts()["pending"] == 1  # not ended before its work is
        cleaned.set()
        await stage.ear.hears(1)
        assert stage.ear.words() == ["shed paused"]
