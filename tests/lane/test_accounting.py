"""Law 4: sampled = pending + compared + shed + failed + expired + cancelled, whenever somebody looks."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from tests.builders import (
    Ear,
    Offer,
    Stage,
    WatchedEngine,
    exchange,
    in_loop,
    num_ended,
    running,
    shadow_spec,
    turns,
    word,
)

from understudy.errors import EngineDead, EngineError, Unsupported
from understudy.lane import lane as lane_module
from understudy.lane.ledger import Ledger, total
from understudy.types import Ending, Outcome, State

NUM_EXCHANGES = 2000
FAULTS: tuple[Callable[[], Exception], ...] = (
    RuntimeError,
    TimeoutError,
    EngineDead,
    EngineError,
    lambda: Unsupported("too_long", "x"),
)


@dataclass
class RandomEngine(WatchedEngine):
    """Takes up to ``max_turns`` turns of the loop for each call, and fails with ``fault_fraction``."""

    seed: int = 0
    max_turns: int = 0
    fault_fraction: float = 0.0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def _enter(self, name: str) -> None:
        await super()._enter(name)
        await turns(self._random.randint(0, self.max_turns))
        if self._random.random() < self.fault_fraction:
            raise self._random.choice(FAULTS)()


def random_offer(number: int, random_: random.Random) -> Offer:
    outcomes = [Outcome.FINISHED] * 17 + [Outcome.CANCELLED, Outcome.FAILED]
    given = Offer(exchange(f"x-{number}", outcome=random_.choice(outcomes)))
    given.shadow_off = random_.random() < 0.05
    given.unsupported = "beam_search" if random_.random() < 0.03 else None
    given.fault = ValueError("unreadable") if random_.random() < 0.02 else None
    return given


def watch_every_turn(stage: Stage, *, tick_s: float) -> list[int]:
    """Check the equation at every turn of the event loop from now on; the lane's time goes on with them."""
    looks, loop = [0], asyncio.get_running_loop()

    def look() -> None:
        looks[0] += 1
        stage.clock.advance(tick_s)
        stage.check_equation()
        loop.call_soon(look)

    look()
    return looks


@pytest.mark.parametrize("seed", [1, 2, 3])
@in_loop
async def test_the_counts_add_up_at_every_turn_of_the_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "MAX_INBOX", 4)
    monkeypatch.setattr(lane_module, "PRESSURE_POLL_S", 0.0001)
    random_ = random.Random(seed)
    faulty = RandomEngine("faulty", seed=seed, max_turns=1, fault_fraction=0.4)
    slow = RandomEngine("slow", seed=seed, max_turns=12, fault_fraction=0.02)
    spec = shadow_spec(
        sample=0.9,
        max_pending=25,
        max_concurrency=3,
        deadline_s=5.0,
        breaker_faults=4,
        breaker_cooldown_s=3.0,
        yield_above=8,
    )
    given = [random_offer(number, random_) for number in range(NUM_EXCHANGES)]
    load = [0]
    async with running(faulty, slow, spec=spec, champion_load=lambda: load[0]) as stage:
        looks = watch_every_turn(stage, tick_s=0.05)
        for each in given:
            stage.lane.offer(each)
            stage.check_equation()
            if random_.random() < 0.02:
                (stage.lane.resume if stage.lane.paused else stage.lane.pause)()
                stage.check_equation()
            if random_.random() < 0.05:
                load[0] = random_.choice([0, 0, 0, 20])
            slow.why_not = "reloading" if random_.random() < 0.02 else ""
            if random_.random() < 0.4:
                await turns(random_.randint(1, 12))
        load[0] = 0
        stage.lane.resume()
        await stage.lane.idle()

        assert looks[0] > NUM_EXCHANGES
        check_each_ended_exactly_once(stage, given)
        assert num_ended(stage.lane.totals()) == stage.lane.totals()["sampled"]
        reached = {word(ending) for _, _, ending in stage.ear.endings}
        assert {
            "compared",
            "cancelled",
            "expired",
            "failed champion_failed",
            "failed RuntimeError",
            "shed paused",
            "shed queue_full",
            "shed breaker_open",
            "shed challenger_not_ready",
            "shed beam_search",
            "shed too_long",
        } <= reached
        assert stage.lane.totals()["failed"]["unreadable"]
        assert stage.lane.totals()["shed"]["inbox_full"]


def check_each_ended_exactly_once(stage: Stage, given: list[Offer]) -> None:
    """For each challenger, by what the witness heard."""
    heard = Counter((exchange_id, name) for exchange_id, name, _ in stage.ear.endings)
    accepted = Counter(stage.ear.accepted_ids)
    assert set(accepted.values()) == {1}
    assert set(heard.values()) == {1}
    assert set(heard) == {(exchange_id, name) for exchange_id in accepted for name in stage.lane.sides}
    for name, counts in stage.lane.counts().items():
        endings = Counter(ending.state.value for _, side, ending in stage.ear.endings if side == name)
        assert counts["offered"] == len(given)
        assert counts["pending"] == 0
        assert counts["sampled"] == len(accepted) == num_ended(counts)
        assert counts["compared"] == endings["compared"]
        assert counts["expired"] == endings["expired"]
        assert counts["cancelled"] == endings["cancelled"]
        assert sum(counts["shed"].values()) == endings["shed"]
        assert sum(counts["failed"].values()) == endings["failed"]


@in_loop
async def test_the_witness_too_sees_counts_that_add_up() -> None:
    class Looking(Ear):
        def ended(self, exchange: Any, challenger: str, ending: Ending) -> None:
            stage.check_equation()
            super().ended(exchange, challenger, ending)

    async with running(WatchedEngine("a"), WatchedEngine("b"), ear=Looking()) as stage:
        stage.lane.offer(Offer())
        await stage.ear.hears(2)
        assert stage.lane.guard.swallowed == {}


def test_a_ledger_counts_reasons_apart() -> None:
    ledger = Ledger()
    endings = [
        Ending(State.COMPARED),
        Ending(State.SHED, "paused"),
        Ending(State.SHED, "paused"),
        Ending(State.SHED, "queue_full"),
        Ending(State.FAILED, "engine_dead"),
        Ending(State.FAILED),
        Ending(State.EXPIRED),
        Ending(State.CANCELLED),
    ]
    ledger.offer(20)
    for ending in endings:
        ledger.sample()
        ledger.end(ending)
    ledger.sample()
    assert ledger.counts() == {
        "offered": 20,
        "sampled": 9,
        "pending": 1,
        "compared": 1,
        "shed": {"paused": 2, "queue_full": 1},
        "failed": {"engine_dead": 1, "unknown": 1},
        "expired": 1,
        "cancelled": 1,
    }


def test_counts_are_a_copy() -> None:
    ledger = Ledger()
    ledger.counts()["shed"]["paused"] = 5
    assert ledger.counts()["shed"] == {}


def test_the_counts_of_an_earlier_run_are_taken_over_and_add_up() -> None:
    ledger = Ledger()
    earlier = SimpleNamespace(
        offered=30, compared=5, expired=1, cancelled=2, shed={"paused": 3}, failed={"engine_dead": 4}
    )
    ledger.offer(2)
    ledger.sample()
    ledger.restore(earlier)
    ledger.end(Ending(State.SHED, "paused"))
    counts = ledger.counts()
    assert counts["offered"] == 32
    assert counts["sampled"] == num_ended(counts) == 16
    assert counts["shed"] == {"paused": 4}
    assert counts["pending"] == 0


def test_totals_are_the_sums_in_the_same_form() -> None:
    one, two = Ledger(), Ledger()
    one.offer(3)
    two.offer(3)
    for ledger, ending in [
        (one, Ending(State.SHED, "a")),
        (two, Ending(State.SHED, "a")),
        (two, Ending(State.SHED, "b")),
        (two, Ending(State.COMPARED)),
    ]:
        ledger.sample()
        ledger.end(ending)
    two.sample()
    summed = total([one.counts(), two.counts()])
    assert summed == {
        "offered": 6,
        "sampled": 5,
        "pending": 1,
        "compared": 1,
        "shed": {"a": 2, "b": 1},
        "failed": {},
        "expired": 0,
        "cancelled": 0,
    }
    assert total([]) == Ledger().counts()
