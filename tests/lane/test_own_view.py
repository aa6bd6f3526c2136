"""Divergence in the lane: the champion reads first, once for all, and whatever happens the exchange is scored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.builders import Offer, WatchedEngine, exchange, in_loop, running, shadow_spec, turns

from understudy.config import ShadowSpec, parse
from understudy.engines.base import ShadowRequest
from understudy.errors import ConfigError, EngineDead
from understudy.lane.own_view import why_none
from understudy.lane.sampling import is_sampled
from understudy.types import Floor, Score


def spec(**limits: Any) -> ShadowSpec:
    return replace(shadow_spec(**limits), divergence=1.0)


@dataclass
class Keyed(WatchedEngine):
    """Writes down under which keys it was asked to leave or compare what it saw, in one list for all."""

    keys: list[str] = field(default_factory=list)

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        self.keys.append(f"{self.name} keep={request.keep} against={request.against}")
        return await super().score(request)


@dataclass
class Fails(Keyed):
    """It cannot leave what it saw."""

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        scores = await super().score(request)
        if request.keep:
            raise EngineDead("no room")
        return scores


@in_loop
async def test_the_champion_reads_first_and_once() -> None:
    keys: list[str] = []
    a, b, champion = Keyed("a", keys=keys), Keyed("b", keys=keys), Keyed("champion", keys=keys)
    async with running(a, b, spec=spec(), floor=champion) as stage:
        stage.lane.offer(Offer(exchange("x")))
        first, _ = await stage.ear.hears(2)
        assert keys[0] == "champion keep=x against="
        assert sorted(keys[1:]) == ["a keep= against=x", "b keep= against=x"]
        assert champion.calls == ["prepare", "score"]  # it does not answer again: that is the noise floor's
        assert first.floor is None
        assert stage.lane.status()["divergence"] == {"fraction": 1.0, "counts": {"read": 1}}


@in_loop
async def test_the_noise_floor_of_the_same_exchange_takes_its_scores_from_the_same_pass() -> None:
    keys: list[str] = []
    a, b, champion = Keyed("a", keys=keys), Keyed("b", keys=keys), Keyed("champion", keys=keys)
    async with running(a, b, spec=replace(spec(), noise_floor=1.0), floor=champion) as stage:
        stage.lane.offer(Offer(exchange("x")))
        first, second = await stage.ear.hears(2)
        assert [key for key in keys if key.startswith("champion")] == ["champion keep=x against="]
        assert sorted(champion.calls) == ["generate", "prepare", "prepare", "score"]
        for ending in (first, second):
            assert ending.floor is not None
            assert ending.floor.observation is not None
            assert ending.floor.observation.scores == (Score((-0.693147,) * 2, (1,) * 2),)
        assert stage.lane.status()["noise_floor"]["counts"] == {"measured": 1}
        assert stage.lane.status()["divergence"]["counts"] == {"read": 1}


@in_loop
async def test_where_the_view_fails_the_noise_floor_scores_by_itself() -> None:
    champion = Fails("champion")
    async with running(Keyed("a"), spec=replace(spec(), noise_floor=1.0), floor=champion) as stage:
        stage.lane.offer(Offer(exchange("x")))
        (ending,) = await stage.ear.hears(1)
        assert champion.keys == ["champion keep=x against=", "champion keep= against="]
        assert ending.floor is not None
        assert ending.floor.observation is not None
        assert ending.floor.observation.scores
        assert stage.lane.status()["divergence"]["counts"] == {"EngineDead": 1}
        assert stage.lane.status()["noise_floor"]["counts"] == {"measured": 1}


@in_loop
async def test_a_view_that_ends_with_its_exchange_lets_go_of_the_floor_that_waits_for_it() -> None:
    champion = Keyed("champion", gates={"score": asyncio.Event()})
    async with running(Keyed("a"), spec=replace(spec(deadline_s=0.1), noise_floor=1.0), floor=champion) as stage:
        stage.lane.offer(Offer(exchange("x")))
        (ending,) = await stage.ear.hears(1)
        assert ending.floor == Floor(reason="late")
        await turns(20)
        assert not [task.get_name() for task in asyncio.all_tasks() if task.get_name() in ("noise-floor", "own-view")]


@in_loop
async def test_without_the_champions_view_the_exchange_is_scored_as_ever() -> None:
    for champion, counted in (
        (Keyed(fault=EngineDead("gone")), {"EngineDead": 1}),
        (Keyed(why_not="gone"), {"not_ready": 1}),
        (Keyed(gates={"score": asyncio.Event()}), {"late": 1}),
    ):
        challenger = Keyed("rival")
        async with running(challenger, spec=spec(deadline_s=0.1), floor=champion) as stage:
            stage.lane.offer(Offer())
            await stage.ear.hears(1)
            assert stage.ear.words() == ["compared"]
            assert challenger.keys == ["rival keep= against="]
            assert stage.lane.status()["divergence"]["counts"] == counted


def one_of(*, chosen: bool) -> Offer:
    names = (f"x-{number}" for number in range(1000))
    return Offer(exchange(next(name for name in names if is_sampled(name, 0.5, "divergence") is chosen)))


@in_loop
async def test_a_champion_that_reads_slowly_holds_no_turn_of_a_challengers() -> None:
    may_read = asyncio.Event()
    champion, challenger = Keyed(gates={"score": may_read}), Keyed("rival")
    chosen, other = one_of(chosen=True), one_of(chosen=False)
    async with running(challenger, spec=replace(spec(max_concurrency=1), divergence=0.5), floor=champion) as stage:
        stage.lane.offer(chosen)
        await champion.called("score")
        stage.lane.offer(other)
        await stage.ear.hears(1)
        assert challenger.keys == ["rival keep= against="]
        may_read.set()
        await stage.ear.hears(2)
        assert [name for name, _, _ in stage.ear.endings] == [other.exchange_id, chosen.exchange_id]
        assert challenger.keys[1] == f"rival keep= against={chosen.exchange_id}"


@in_loop
async def test_who_waited_for_it_waits_for_a_turn_again_and_not_beyond_its_deadline() -> None:
    may_read = asyncio.Event()
    champion, challenger = Keyed(gates={"score": may_read}), Keyed("rival", gates={"generate": asyncio.Event()})
    async with running(challenger, spec=replace(spec(max_concurrency=1), divergence=0.5), floor=champion) as stage:
        stage.lane.offer(one_of(chosen=True))
        await champion.called("score")
        stage.lane.offer(one_of(chosen=False))
        await challenger.called("generate")
        may_read.set()
        await turns(20)
        assert challenger.calls.count("generate") == 1  # the turn is another's
        stage.clock.advance(1000)
        challenger.gates["generate"].set()
        await stage.ear.hears(2)
        assert stage.ear.words() == ["compared", "expired"]
        assert challenger.calls.count("prepare") == 1
        assert stage.lane.sides["rival"].breaker.state == "closed"


def test_status_says_why_there_is_no_divergence() -> None:
    champion = SimpleNamespace(scoring={"path": "fused", "why": ""}, vocab_size=100)
    like = {"same_tokenizer": True, "scoring": champion.scoring, "vocab_size": 100}
    assert why_none(champion, SimpleNamespace(**like)) == ""
    assert why_none(champion, SimpleNamespace(**like | {"same_tokenizer": False})) == "it has another tokenizer"
    assert "108 tokens, the champion's 100" in why_none(champion, SimpleNamespace(**like | {"vocab_size": 108}))
    odd = {"scoring": {"path": "logits", "why": "lm_head is quantised"}}
    assert "its lm_head cannot be used without the model: lm_head is quantised" in why_none(
        champion, SimpleNamespace(**like | odd)
    )
    assert why_none(None, SimpleNamespace(**like)).startswith("the champion's lm_head")


@pytest.mark.parametrize(
    "raw",
    [{"placement": "dedicated", "shadow": {"divergence": 0.1}}, {"shadow": {"divergence": 0.1, "score": False}}],
)
def test_it_needs_one_process_and_scoring(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"shadow\.divergence: 0\.1: needs"):
        parse({"champion": {"model": "m"}} | raw)
