"""Every way in which an exchange can end for one challenger; pause and the breaker have their own files."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.builders import (
    Clock,
    Ear,
    Offer,
    WatchedEngine,
    answer,
    exchange,
    in_loop,
    offers,
    running,
    shadow_spec,
    turns,
    word,
)

from understudy.compare import likelihood
from understudy.engines.base import DeviceUse
from understudy.engines.fake import AbsentEngine
from understudy.errors import EngineDead, EngineError, Unsupported
from understudy.judge.base import is_missing
from understudy.lane import lane as lane_module
from understudy.lane.holding import held_bytes
from understudy.lane.lane import Lane
from understudy.types import Ending, Exchange, Outcome, Phase, RequestFacts


async def end_of(engine: WatchedEngine, given: Offer, **spec: Any) -> Ending:
    async with running(engine, spec=shadow_spec(**spec)) as stage:
        stage.lane.offer(given)
        (ending,) = await stage.ear.hears(1)
        assert stage.counts(engine.name)["sampled"] == 1
        assert stage.counts(engine.name)["pending"] == 0
        return ending


@in_loop
async def test_compared_with_both_observations() -> None:
    champion = exchange("x", answer(7, 8, 9))
    engine = WatchedEngine("b", answers=lambda _prompt, _champion: ((7, 8, 5, 6),))
    ending = await end_of(engine, Offer(champion))
    assert word(ending) == "compared"
    assert ending.challenger is not None
    assert ending.challenger.model == "b"
    assert ending.challenger.prompt_token_ids == champion.champion.prompt_token_ids
    assert [given.token_ids for given in ending.challenger.answers] == [(7, 8, 5, 6)]
    assert [len(score.logprobs) for score in ending.challenger.scores] == [3]
    assert ending.comparison is not None
    assert ending.comparison.values["token_agreement"] == 0.5
    assert ending.comparison.values["first_divergence"] == 2.0
    assert ending.comparison.values["scored_tokens"] == 3.0
    assert engine.calls == ["prepare", "score", "generate"]


@in_loop
async def test_score_only_generates_nothing_and_has_no_agreement_of_answers() -> None:
    engine = WatchedEngine()
    ending = await end_of(engine, Offer(), generate=False)
    assert engine.calls == ["prepare", "score"]
    assert ending.challenger is not None
    assert ending.comparison is not None
    assert ending.challenger.answers == ()
    assert set(ending.comparison.values) < set(likelihood.NAMES)
    assert ending.comparison.values["scored_tokens"] == 2.0


@in_loop
async def test_generate_only_reads_nothing_and_has_no_likelihood() -> None:
    engine = WatchedEngine()
    ending = await end_of(engine, Offer(), score=False)
    assert engine.calls == ["prepare", "generate"]
    assert ending.challenger is not None
    assert ending.comparison is not None
    assert ending.challenger.scores == ()
    assert set(ending.comparison.values) == {"exact_match", "token_agreement", "first_divergence"}


@pytest.mark.parametrize("where", ["prepare", "score", "generate"])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RuntimeError("it broke"), "failed RuntimeError"),
        (EngineError("it broke"), "failed engine_error"),
        (EngineDead("it broke"), "failed engine_dead"),
        (TimeoutError("it broke"), "failed TimeoutError"),  # the engine's own, long before the deadline
        (Unsupported("too_long", "it broke"), "shed too_long"),
    ],
)
@in_loop
async def test_a_fault_ends_under_its_own_word(where: str, fault: Exception, expected: str) -> None:
    ending = await end_of(WatchedEngine(faults={where: fault}), Offer())
    assert word(ending) == expected
    assert ending.detail == "it broke"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (RuntimeError("it broke"), "RuntimeError: it broke"),
        (asyncio.CancelledError(), "CancelledError: the engine cancelled the work itself"),
    ],
)
@in_loop
async def test_what_a_challenger_has_read_is_kept_when_its_own_answer_fails(fault: BaseException, error: str) -> None:
    ending = await end_of(WatchedEngine(faults={"generate": fault}), Offer(exchange("x", answer(7, 8, 9))))
    seen = ending.challenger
    assert seen is not None
    assert (seen.outcome, seen.answers, seen.error) == (Outcome.FAILED, (), error)
    assert [len(score.logprobs) for score in seen.scores] == [3]
    assert seen.timings.finished_s == Clock().now_s  # when it failed
    assert ending.comparison is None
    assert is_missing(ending)


@pytest.mark.parametrize(("where", "score"), [("prepare", True), ("score", True), ("generate", False)])
@in_loop
async def test_a_challenger_that_fails_and_has_read_nothing_leaves_nothing(where: str, score: bool) -> None:
    ending = await end_of(WatchedEngine(faults={where: RuntimeError("it broke")}), Offer(), score=score)
    assert word(ending) == "failed RuntimeError"
    assert ending.challenger is None


@in_loop
async def test_a_fault_is_counted_by_the_guard_and_one_that_is_nobodys_fault_is_not() -> None:
    broken, picky = WatchedEngine("a", fault=RuntimeError("x")), WatchedEngine("b")
    picky.faults["prepare"] = Unsupported("too_long", "x")
    async with running(broken, picky) as stage:
        stage.lane.offer(Offer())
        await stage.ear.hears(2)
        assert stage.lane.status()["swallowed"] == {"shadow a": 1}
        assert stage.lane.sides["a"].breaker.last_fault == "RuntimeError: x"
        assert stage.lane.sides["b"].breaker.last_fault == ""


@in_loop
async def test_an_engine_that_cancels_the_work_itself_has_failed_and_was_not_paused() -> None:
    engine = WatchedEngine(faults={"generate": asyncio.CancelledError()})
    async with running(engine) as stage:
        stage.lane.offer(Offer())
        await stage.ear.hears(1)
        assert stage.ear.words() == ["failed CancelledError"]
        assert stage.lane.sides["fake"].breaker.last_fault


@in_loop
async def test_the_champion_failed() -> None:
    engine = WatchedEngine()
    ending = await end_of(engine, Offer(exchange(outcome=Outcome.FAILED, error="ValueError: no")))
    assert word(ending) == "failed champion_failed"
    assert ending.detail == "ValueError: no"
    assert not engine.calls


@in_loop
async def test_the_user_cancelled() -> None:
    engine = WatchedEngine()
    ending = await end_of(engine, Offer(exchange(outcome=Outcome.CANCELLED)))
    assert word(ending) == "cancelled"
    assert not engine.calls


@in_loop
async def test_what_the_fork_knows_to_be_unsupported_is_shed_under_that_word() -> None:
    engine = WatchedEngine()
    assert word(await end_of(engine, Offer(unsupported="beam_search"))) == "shed beam_search"
    assert not engine.calls


@in_loop
async def test_an_exchange_that_cannot_be_read_is_accounted_for_on_every_side() -> None:
    async with running(WatchedEngine("a"), WatchedEngine("b")) as stage:
        stage.lane.offer(Offer(exchange("bad"), fault=ValueError("no")))
        stage.lane.offer(Offer(exchange("good")))
        await stage.ear.hears(4)
        assert stage.ear.accepted_ids == ["bad", "good"]
        assert stage.ear.words()[:2] == ["failed unreadable"] * 2
        assert stage.counts("a")["failed"] == stage.counts("b")["failed"] == {"unreadable": 1}
        assert stage.counts("a")["compared"] == stage.counts("b")["compared"] == 1
        assert stage.lane.guard.swallowed == {"intake": 1}


@in_loop
async def test_one_side_that_breaks_at_the_intake_ends_once_and_leaves_the_others_alone() -> None:
    class Rude(WatchedEngine):
        def health(self) -> Any:
            raise RuntimeError("against its contract")

    async with running(WatchedEngine("a"), Rude("b"), WatchedEngine("c")) as stage:
        stage.lane.offer(Offer())
        await stage.ear.hears(3)
        assert {name: word(ending) for _, name, ending in stage.ear.endings} == {
            "a": "compared",
            "b": "failed internal",
            "c": "compared",
        }


@in_loop
async def test_a_challenger_that_is_not_ready_sheds_with_its_reason() -> None:
    for engine in (WatchedEngine(why_not="loading"), AbsentEngine("fake", "loading")):
        async with running(engine) as stage:
            assert stage.lane.phase() is Phase.OFF
            stage.lane.offer(Offer())
            (ending,) = await stage.ear.hears(1)
            assert word(ending) == "shed challenger_not_ready"
            assert ending.detail == "loading"


@in_loop
async def test_a_challenger_that_dies_while_exchanges_wait_sheds_them() -> None:
    engine = WatchedEngine(gates={"generate": asyncio.Event()})
    async with running(engine, spec=shadow_spec(max_concurrency=1)) as stage:
        for each in offers(3):
            stage.lane.offer(each)
        await engine.called("generate")
        await turns(10)
        engine.why_not = "gone"
        engine.gates["generate"].set()
        await stage.ear.hears(3)
        assert stage.ear.words() == ["compared", "shed challenger_not_ready", "shed challenger_not_ready"]


@in_loop
async def test_a_full_queue_sheds_for_that_challenger_only() -> None:
    slow, quick = WatchedEngine("slow", gates={"generate": asyncio.Event()}), WatchedEngine("quick")
    async with running(slow, quick, spec=shadow_spec(max_concurrency=1, max_pending=2)) as stage:
        stage.lane.offer(Offer(exchange("first")))
        await slow.called("generate")
        for number, each in enumerate(offers(5), 1):
            stage.lane.offer(each)
            await stage.ear.hears(1 + number + max(0, number - 2))  # the quick one's, and what the slow one shed
        assert len(stage.lane.sides["slow"].queue) == 2
        assert stage.counts("slow")["shed"] == {"queue_full": 3}
        assert stage.counts("slow")["pending"] == 3
        assert stage.counts("quick")["compared"] == 6
        slow.gates["generate"].set()
        await stage.ear.hears(12)
        assert stage.counts("slow")["compared"] == 3


@in_loop
async def test_a_hanging_challenger_expires_at_the_deadline_and_its_work_is_aborted() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(deadline_s=0.02)) as stage:
        stage.lane.offer(Offer())
        (ending,) = await stage.ear.hears(1)
        assert word(ending) == "expired"
        assert engine.calls == ["prepare", "score", "generate"]
        assert engine.aborted == 1
        assert "deadline" in stage.lane.sides["fake"].breaker.last_fault
        assert stage.lane.guard.swallowed == {}


@pytest.mark.parametrize(
    ("own_s", "others_s", "expected"),
    [
        (0.0, 1.0, "shed starved"),  # the champion never rested, or another challenger took as long
        (0.5, 1.0, "expired"),  # it had its share, and was too slow
        (0.0, 0.0, "expired"),  # nobody kept it from working
    ],
)
@in_loop
async def test_a_challenger_without_device_time_is_starved_and_not_to_blame(
    own_s: float, others_s: float, expected: str
) -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(deadline_s=0.02, breaker_faults=1)) as stage:
        stage.lane.offer(Offer())
        await engine.called("generate")
        stage.clock.advance(1.0)
        engine.use = DeviceUse(own_s, others_s)
        (ending,) = await stage.ear.hears(1)
        assert word(ending) == expected
        assert (stage.lane.sides["fake"].breaker.state == "closed") is (expected == "shed starved")


@in_loop
async def test_what_waits_behind_others_until_the_deadline_expires_without_reaching_the_engine() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(deadline_s=60.0, max_concurrency=1)) as stage:
        for each in offers(2):
            stage.lane.offer(each)
        await engine.called("generate")
        await turns(10)
        stage.clock.advance(60.0)
        assert engine.gate is not None
        engine.gate.set()
        await stage.ear.hears(2)
        assert stage.ear.words() == ["compared", "expired"]
        assert engine.calls.count("prepare") == 1


@in_loop
async def test_pressure_until_the_deadline_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "PRESSURE_POLL_S", 0.001)
    engine, polled = WatchedEngine(), asyncio.Event()

    def load() -> int:
        polled.set()
        return 1000

    async with running(engine, spec=shadow_spec(deadline_s=60.0), champion_load=load) as stage:
        stage.lane.offer(Offer())
        await polled.wait()
        stage.clock.advance(60.0)
        (ending,) = await stage.ear.hears(1)
        assert word(ending) == "expired"
        assert "pressure" in str(ending.detail)
        assert not engine.calls


@in_loop
async def test_a_fault_of_the_lane_itself_is_accounted_for_counted_and_logged() -> None:
    def load() -> int:
        raise RuntimeError("the champion does not say")

    async with running(WatchedEngine(), champion_load=load) as stage:
        stage.lane.offer(Offer())
        (ending,) = await stage.ear.hears(1)
        assert word(ending) == "failed internal"
        assert ending.detail == "the champion does not say"
        assert stage.lane.guard.swallowed == {"lane": 1}


@in_loop
async def test_a_witness_that_raises_stops_nothing_and_is_counted() -> None:
    ear = Ear(fault=OSError("disk full"))
    async with running(WatchedEngine("a"), WatchedEngine("b"), ear=ear) as stage:
        for each in offers(5):
            stage.lane.offer(each)
        await ear.hears(10)
        assert stage.counts("a")["compared"] == stage.counts("b")["compared"] == 5
        assert stage.lane.guard.swallowed == {"record": 5 + 10}


@in_loop
async def test_an_exchange_is_accepted_before_it_ends_and_accepted_once_for_all_challengers() -> None:
    class Order(Ear):
        def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
            assert exchange.exchange_id in self.accepted_ids
            super().ended(exchange, challenger, ending)

    async with running(WatchedEngine("a"), WatchedEngine("b", why_not="down"), ear=Order()) as stage:
        for each in offers(5):
            stage.lane.offer(each)
        await stage.ear.hears(10)
        assert stage.ear.accepted_ids == [f"x-{number}" for number in range(5)]
        assert stage.lane.guard.swallowed == {}


@in_loop
async def test_close_aborts_what_runs_and_leaves_it_pending_for_the_next_start() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(max_concurrency=2)) as stage:
        for each in offers(4):
            stage.lane.offer(each)
        await engine.called("generate", 2)
        await turns(10)
        await stage.lane.close()
        await stage.lane.close()  # idempotent
        assert engine.aborted == 2
        assert not stage.ear.endings
        assert stage.counts()["pending"] == 4


@in_loop
async def test_a_lane_without_challengers_only_lets_things_pass() -> None:
    ear = Ear()
    lane = Lane([], shadow_spec(), ear)
    lane.start()
    lane.offer(Offer())
    await lane.idle()
    assert lane.phase() is Phase.OFF
    assert lane.totals()["sampled"] == 0
    await lane.close()


@in_loop
async def test_max_concurrency_is_reached_and_never_passed() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(max_concurrency=3)) as stage:
        for each in offers(10):
            stage.lane.offer(each)
        await engine.called("generate", 3)
        await turns(100)
        assert engine.now_inside == 3
        assert len(stage.lane.sides["fake"].queue) == 7
        assert engine.gate is not None
        engine.gate.set()
        await stage.ear.hears(10)
        assert engine.most_inside == 3


@in_loop
async def test_exchanges_are_worked_on_in_the_order_in_which_they_came() -> None:
    async with running(WatchedEngine(), spec=shadow_spec(max_concurrency=1)) as stage:
        given = offers(20)
        for each in given:
            stage.lane.offer(each)
        await stage.ear.hears(20)
        assert [exchange_id for exchange_id, _, _ in stage.ear.endings] == [each.exchange_id for each in given]


@in_loop
async def test_phase_says_what_the_shadow_does() -> None:
    engine = WatchedEngine()
    async with running(engine) as stage:
        assert stage.lane.phase() is Phase.SHADOWING
        stage.lane.pause()
        assert stage.lane.phase() is Phase.PAUSED
        stage.lane.resume()
        engine.why_not = "gone"
        assert stage.lane.phase() is Phase.OFF
    async with running(WatchedEngine(), spec=shadow_spec(sample=0.0)) as stage:
        assert stage.lane.phase() is Phase.OFF


@in_loop
async def test_what_holds_too_much_memory_is_shed_until_something_has_ended() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    spec = shadow_spec(max_concurrency=1, max_pending_bytes=4_000_000)
    large = [Offer(exchange(f"x-{number}", facts=RequestFacts(body=bytes(1_500_000)))) for number in range(3)]
    alone = Offer(exchange("alone", facts=RequestFacts(body=bytes(5_000_000))))
    async with running(engine, spec=spec) as stage:
        for each in large:
            stage.lane.offer(each)
        (ending,) = await stage.ear.hears(1)  # one runs and one waits
        assert (stage.ear.words(), ending.detail) == (["shed queue_full"], "what waits holds 3 MiB")
        assert engine.gate is not None
        engine.gate.set()
        await stage.lane.idle()
        stage.lane.offer(alone)
        await stage.lane.idle()
        assert stage.ear.words()[1:] == ["compared"] * 3
        assert stage.lane.sides["fake"].held_bytes == 0


@in_loop
async def test_what_pause_sheds_holds_nothing() -> None:
    engine = WatchedEngine(gate=asyncio.Event())
    async with running(engine, spec=shadow_spec(max_concurrency=1)) as stage:
        for each in offers(3):
            stage.lane.offer(each)
        await engine.called("generate")
        stage.lane.pause()
        await stage.ear.hears(3)
        await turns(5)
        assert stage.lane.sides["fake"].held_bytes == 0


def test_what_an_exchange_holds_is_its_texts_and_numbers() -> None:
    small = held_bytes(exchange())
    assert small < 4096
    for larger in (
        exchange(facts=RequestFacts(body=bytes(50_000))),
        exchange("x", answer(7, text="a" * 50_000)),
        exchange(prompt_text="a" * 50_000),
        exchange(prompt_token_ids=tuple(range(2000))),
        exchange("x", replace(answer(*range(1000)), logprobs=(0.5,) * 1000)),
    ):
        assert held_bytes(larger) > small + 45_000
