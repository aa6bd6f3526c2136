"""offer() is the one call on the answer's path: never raises, awaits or copies, and keeps one reference."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.builders import Ear, Offer, WatchedEngine, exchange, in_loop, offers, running, shadow_spec, turns

from understudy.lane import lane as lane_module
from understudy.lane.lane import Lane


class Untouchable:
    """Every attribute of it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@in_loop
async def test_offer_survives_what_cannot_be_looked_at() -> None:
    async with running(WatchedEngine()) as stage:
        assert stage.lane.offer(Untouchable()) is None  # type: ignore[func-returns-value]
        await turns(5)
        stage.lane.offer(Offer())  # the lane goes on
        await stage.ear.hears(1)
        assert stage.lane.guard.swallowed == {"offer": 1, "intake": 1}
        assert stage.counts()["offered"] == 2
        assert stage.counts()["compared"] == 1


@in_loop
async def test_nothing_runs_inside_offer() -> None:
    assert not inspect.iscoroutinefunction(Lane.offer)
    engine = WatchedEngine()
    async with running(engine) as stage:
        asked = engine.health_asked
        given = Offer()
        stage.lane.offer(given)
        assert given.completed == 0
        assert engine.health_asked == asked
        assert not engine.calls
        assert not stage.ear.accepted_ids
        assert stage.counts()["offered"] == 0  # even counting waits


@in_loop
async def test_offer_does_not_raise_whatever_is_broken_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "MAX_INBOX", 1)
    engine = WatchedEngine(faults={name: RuntimeError(name) for name in ("prepare", "score", "generate")})
    async with running(engine, ear=Ear(fault=RuntimeError("ear"))) as stage:
        stage.lane.offer(Offer(exchange("a"), fault=RuntimeError("complete")))
        stage.lane.offer(Offer(exchange("b")))
        await stage.lane.idle()
        stage.lane.offer(Offer(exchange("c")))
        await stage.lane.idle()
        assert stage.counts()["failed"] == {"unreadable": 1, "RuntimeError": 1}
        assert stage.counts()["shed"] == {"inbox_full": 1}


@in_loop
async def test_the_inbox_is_bounded_and_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "MAX_INBOX", 10)
    engines = WatchedEngine("a"), WatchedEngine("b")
    async with running(*engines, spec=shadow_spec(sample=0.5)) as stage:
        given = offers(50)
        chosen = next(each for each in given[10:] if lane_module.is_sampled(each.exchange_id, 0.5))
        chosen.shadow_off = True  # it would have been sampled
        for each in given:
            stage.lane.offer(each)
        full = sum(lane_module.is_sampled(each.exchange_id, 0.5) for each in given[10:] if not each.shadow_off)
        assert len(stage.lane._inbox) == 10
        assert 0 < full < 39
        await stage.lane.idle()
        for name in "ab":
            counts = stage.counts(name)
            assert counts["offered"] == 50
            assert counts["shed"] == {"inbox_full": full}
            assert counts["compared"] == sum(lane_module.is_sampled(each.exchange_id, 0.5) for each in given[:10])
        assert not any(each.completed for each in given[10:])  # not even copied


@in_loop
async def test_the_inbox_is_bounded_in_bytes_too() -> None:
    async with running(WatchedEngine(), spec=shadow_spec(max_pending_bytes=1_000_000)) as stage:
        given = offers(5)
        for each in given:
            each.held_bytes = 400_000
            stage.lane.offer(each)
        assert stage.lane._inbox_bytes == 800_000
        await stage.lane.idle()
        assert (stage.counts()["compared"], stage.counts()["shed"]) == (2, {"inbox_full": 3})
        assert not any(each.completed for each in given[2:])
        assert stage.lane._inbox_bytes == 0
        alone = Offer(exchange("alone"), held_bytes=5_000_000)
        stage.lane.offer(alone)
        await stage.lane.idle()
        assert alone.completed == 1  # one alone may be larger, as in the queue


@in_loop
async def test_what_is_offered_before_the_start_is_taken_up_then() -> None:
    stage_ear = Ear()
    lane = Lane([WatchedEngine()], shadow_spec(), stage_ear)
    lane.offer(Offer())
    lane.start()
    await stage_ear.hears(1)
    assert stage_ear.words() == ["compared"]
    await lane.close()


@in_loop
async def test_what_is_offered_before_the_end_is_counted_and_recorded() -> None:
    """At a stop the server cuts off open answers, and these are offered a moment before the lane ends."""
    async with running(WatchedEngine(gate=asyncio.Event())) as stage:
        for number in range(50):
            stage.lane.offer(Offer(exchange(f"x-{number}")))
        await stage.lane.close()
        assert stage.counts()["offered"] == stage.counts()["pending"] == len(stage.ear.accepted_ids) == 50


@in_loop
async def test_the_intake_lets_the_answers_go_first() -> None:
    """One exchange a turn of the loop, however many were offered."""
    async with running(WatchedEngine()) as stage:
        for each in offers(100):
            stage.lane.offer(each)
        taken = []
        for _ in range(20):
            before = stage.counts()["sampled"]
            await turns(1)
            taken.append(stage.counts()["sampled"] - before)
        assert max(taken) == 1


@contextlib.contextmanager
def busy_loop() -> Iterator[None]:
    """Every turn of the event loop takes a millisecond, as while it streams answers."""
    loop, left = asyncio.get_running_loop(), False

    def turn() -> None:
        time.sleep(0.001)
        if not left:
            loop.call_soon(turn)

    turn()
    try:
        yield
    finally:
        left = True


@in_loop
async def test_in_a_busy_loop_the_lane_waits_for_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(WatchedEngine()) as stage:
        monkeypatch.setattr(lane_module, "BUSY_LAP_S", 0.0005)
        monkeypatch.setattr(lane_module, "MAX_LATE_S", math.inf)
        given = Offer()
        with busy_loop():
            stage.lane.offer(given)
            await turns(100)
            assert given.completed == 0
        monkeypatch.setattr(lane_module, "BUSY_LAP_S", math.inf)  # the first gap, however busy the machine is
        await stage.lane.idle()
        assert stage.counts()["compared"] == 1


@pytest.mark.parametrize(("max_inbox", "shed"), [(10, {}), (1, {"inbox_full": 2})], ids=["taken", "unseen"])
@in_loop
async def test_where_no_gap_comes_it_goes_on_all_the_same_also_with_what_was_shed_unseen(
    max_inbox: int, shed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "MAX_INBOX", max_inbox)
    async with running(WatchedEngine()) as stage:
        monkeypatch.setattr(lane_module, "BUSY_LAP_S", 0.0)
        monkeypatch.setattr(lane_module, "MAX_LATE_S", 0.02)
        for each in offers(3):
            stage.lane.offer(each)
        await stage.lane.idle()
        assert stage.counts()["shed"] == shed
        assert stage.counts()["compared"] == 3 - sum(shed.values())
        assert len(stage.ear.accepted_ids) == 3


@in_loop
async def test_what_is_late_is_not_taken_in_one_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(WatchedEngine()) as stage:
        monkeypatch.setattr(lane_module, "BUSY_LAP_S", 0.0)
        monkeypatch.setattr(lane_module, "MAX_LATE_S", 0.0)
        monkeypatch.setattr(lane_module, "MAX_AT_ONCE_S", math.inf)
        given = offers(50)
        for each in given:
            stage.lane.offer(each)
        await turns(5)
        assert all(each.completed for each in given)


@in_loop
async def test_closing_waits_for_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(WatchedEngine()) as stage:
        monkeypatch.setattr(lane_module, "BUSY_LAP_S", 0.0)
        monkeypatch.setattr(lane_module, "MAX_LATE_S", math.inf)
        stage.lane.offer(Offer())
        await turns(3)
        await stage.lane.close()
        assert stage.counts()["offered"] == 1
