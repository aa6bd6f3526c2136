"""The noise floor: once for all challengers, never a challenger itself, and no fault of it counts against anyone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from tests.builders import Offer, WatchedEngine, answer, exchange, in_loop, offers, running, shadow_spec, turns

from understudy.compare import COMPARATORS, Comparators, load
from understudy.compare.options import CompareSpec
from understudy.config import ShadowSpec
from understudy.engines.flight import Steps
from understudy.engines.placements import FLOOR
from understudy.errors import EngineDead, Unsupported
from understudy.lane.sampling import is_sampled
from understudy.types import Floor, RequestFacts


def spec(fraction: float = 1.0, **limits: Any) -> ShadowSpec:
    return replace(shadow_spec(**limits), noise_floor=fraction)


def otherwise(_prompt: tuple[int, ...], champion: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The first token of each answer, then another one."""
    return tuple((ids[0], 99) for ids in champion)


@in_loop
async def test_one_run_serves_every_challenger_and_is_none_itself() -> None:
    floor = WatchedEngine(name="again", answers=otherwise)
    async with running(WatchedEngine(name="a"), WatchedEngine(name="b"), spec=spec(), floor=floor) as stage:
        stage.lane.offer(Offer())
        first, second = await stage.ear.hears(2)
        assert floor.calls == ["prepare", "score", "generate"]
        assert first.floor is second.floor is not None
        assert first.floor.comparison is not None
        assert first.floor.comparison.values["exact_match"] == 0.0
        assert first.floor.comparison.values["token_agreement"] == 0.5
        assert first.comparison is not None
        assert first.comparison.values["exact_match"] == 1.0
        assert first.comparison.values["perplexity_ratio"] == 1.0  # both found every token half likely
        assert set(stage.lane.counts()) == {"a", "b"}
        assert stage.lane.totals()["compared"] == 2
        assert stage.lane.status()["noise_floor"]["counts"] == {"measured": 1}


@in_loop
async def test_every_comparator_compares_the_champion_with_itself() -> None:
    """What a challenger has a number for, the champion has one for against itself: it is priced by its own name."""
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    body = {"tools": [tool], "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}
    text = '<tool_call>{"name": "find", "arguments": {}}</tool_call>'
    call = replace(answer(7, 8, text=text), logprobs=(-0.5, -0.5))
    whole = exchange("x", call, facts=RequestFacts("/v1/chat/completions", body=json.dumps(body).encode()))
    price = {"input": 1.0, "output": 2.0}
    options: dict[str, Any] = {"label_pattern": r"(\w+)", "token_prices": {"champion": price, "a": price}}
    compare = Comparators(CompareSpec(use=tuple(COMPARATORS), **options))
    async with running(WatchedEngine(name="a"), spec=spec(), floor=WatchedEngine(name=FLOOR), compare=compare) as stage:
        stage.lane.offer(Offer(whole))
        (ending,) = await stage.ear.hears(1)
    assert ending.floor is not None
    assert ending.floor.comparison is not None
    assert ending.comparison is not None
    own = ending.floor.comparison.values
    assert set(own) == set(ending.comparison.values)
    assert all(set(load(name).NAMES) & set(own) for name in COMPARATORS)
    assert (own["champion_cost_usd"], own["cost_ratio"]) == (7e-6, 1.0)


@in_loop
async def test_status_says_what_the_champion_may_have_waited_for_its_steps() -> None:
    floor: Any = WatchedEngine(name="again")
    async with running(WatchedEngine(), spec=spec(), floor=floor) as stage:
        assert stage.lane.status()["noise_floor"]["steps"] is None  # one without steps of its own
        floor.steps = lambda: Steps(steps=3, longest_ms=7.5)
        shown = stage.lane.status()["noise_floor"]["steps"]
        assert (shown["steps"], shown["longest_ms"]) == (3, 7.5)


@in_loop
async def test_the_slice_is_chosen_by_hash_and_independently_of_the_sample() -> None:
    floor = WatchedEngine()
    async with running(WatchedEngine(), spec=replace(spec(0.25), sample=0.5), floor=floor) as stage:
        for each in offers(200):
            stage.lane.offer(each)
        await stage.lane.idle()
        chosen = {name for name, _, ending in stage.ear.endings if ending.floor is not None}
        assert chosen == {name for name, _, _ in stage.ear.endings if is_sampled(name, 0.25, "floor")}
        assert 10 <= len(chosen) <= 45  # of some 100 that were sampled; all of them, were the two slices one
        assert floor.generated == len(chosen)


@pytest.mark.parametrize(
    ("fault", "reason", "swallowed"),
    [(EngineDead("gone"), "EngineDead", {"noise floor": 1}), (Unsupported("too_long", "no"), "too_long", {})],
)
@in_loop
async def test_its_faults_count_against_nobody(fault: Exception, reason: str, swallowed: dict[str, int]) -> None:
    floor = WatchedEngine(fault=fault)
    async with running(WatchedEngine(), spec=spec(breaker_faults=1), floor=floor) as stage:
        stage.lane.offer(Offer())
        (ending,) = await stage.ear.hears(1)
        assert stage.ear.words() == ["compared"]
        assert ending.floor == Floor(reason=reason)
        assert stage.lane.sides["fake"].breaker.state == "closed"
        status = stage.lane.status()
        assert status["swallowed"] == swallowed
        assert status["noise_floor"]["counts"] == {reason: 1}
        assert status["noise_floor"]["ready"]


@in_loop
async def test_one_that_hangs_costs_no_exchange_its_ending() -> None:
    floor = WatchedEngine(gate=asyncio.Event())
    async with running(WatchedEngine(), spec=spec(deadline_s=0.05), floor=floor) as stage:
        stage.lane.offer(Offer())
        (ending,) = await stage.ear.hears(1)
        assert stage.ear.words() == ["compared"]
        assert ending.floor == Floor(reason="late")
        await turns(5)
        assert floor.aborted == 1


@in_loop
async def test_a_slow_one_holds_no_turn_of_a_challengers() -> None:
    floor, challenger = WatchedEngine(gate=asyncio.Event()), WatchedEngine(name="a")
    async with running(challenger, spec=spec(max_concurrency=1), floor=floor) as stage:
        for each in offers(3):
            stage.lane.offer(each)
        await challenger.called("generate", 3)  # and the first floor has not ended
        await turns(20)
        assert stage.ear.words() == []
        assert floor.gate is not None
        floor.gate.set()
        endings = await stage.ear.hears(3)
        assert [ending.floor.reason for ending in endings if ending.floor is not None] == [None] * 3
        assert (floor.most_inside, challenger.most_inside) == (1, 1)  # as many at a time as challengers have


@in_loop
async def test_so_many_endings_wait_for_it_and_the_rest_is_late_at_once() -> None:
    floor, challenger = WatchedEngine(gate=asyncio.Event()), WatchedEngine()
    async with running(challenger, spec=spec(max_pending=1), floor=floor) as stage:
        for number, each in enumerate(offers(3), start=1):
            stage.lane.offer(each)
            await challenger.called("generate", number)
        endings = await stage.ear.hears(2)
        assert [ending.floor for ending in endings] == [Floor(reason="late")] * 2
        assert stage.counts()["pending"] == 1


@in_loop
async def test_what_never_had_its_turn_puts_no_load_on_it() -> None:
    floor = WatchedEngine()
    challenger = WatchedEngine(why_not="gone")
    async with running(challenger, spec=spec(), floor=floor) as stage:
        stage.lane.offer(Offer())
        (ending,) = await stage.ear.hears(1)
        assert (stage.ear.words(), ending.floor) == (["shed challenger_not_ready"], Floor(reason="not_run"))
        assert floor.calls == []


@in_loop
async def test_pause_aborts_it_too() -> None:
    floor, challenger = WatchedEngine(gate=asyncio.Event()), WatchedEngine(gate=asyncio.Event())
    async with running(challenger, spec=spec(), floor=floor) as stage:
        stage.lane.offer(Offer())
        await floor.called("generate")
        await challenger.called("generate")
        stage.lane.pause()
        await stage.ear.hears(1)
        await turns(5)
        assert (floor.aborted, challenger.aborted) == (1, 1)


@in_loop
async def test_pause_keeps_what_waits_for_nothing_but_its_floor() -> None:
    floor, challenger = WatchedEngine(gate=asyncio.Event()), WatchedEngine()
    async with running(challenger, spec=spec(), floor=floor) as stage:
        stage.lane.offer(Offer())
        await challenger.called("generate")
        await floor.called("generate")
        await turns(20)
        assert stage.counts()["pending"] == 1
        stage.lane.pause()
        (ending,) = await stage.ear.hears(1)
        assert (stage.ear.words(), ending.floor) == (["compared"], Floor(reason="paused"))
        assert ending.comparison is not None
        await turns(5)
        assert floor.aborted == 1
        assert stage.lane.sides["fake"].breaker.state == "closed"


@in_loop
async def test_closing_keeps_it_too() -> None:
    floor, challenger = WatchedEngine(gate=asyncio.Event()), WatchedEngine()
    async with running(challenger, spec=spec(), floor=floor) as stage:
        stage.lane.offer(Offer())
        await challenger.called("generate")
        await turns(20)
    assert stage.ear.words() == ["compared"]
    assert stage.ear.endings[0][2].floor == Floor(reason="closed")


@in_loop
async def test_its_tokens_are_in_the_budget() -> None:
    """Three prompt and two answer tokens, scored and generated: 10 for the challenger and 10 for the floor."""
    floor = WatchedEngine()
    async with running(WatchedEngine(), spec=spec(), floor=floor) as stage:
        whole = exchange()
        stage.lane.floor.expect(whole, 1)
        assert stage.lane._num_tokens(whole) == 20
        stage.lane.floor.begin(whole)
        assert stage.lane._num_tokens(whole) == 10
