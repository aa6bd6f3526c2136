"""Divergence in the lane: the champion reads first, once for all, and whatever happens the exchange is scored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.builders import Offer, WatchedEngine, exchange, in_loop, running, shadow_spec

from understudy.config import ShadowSpec, parse
from understudy.engines.base import ShadowRequest
from understudy.errors import ConfigError, EngineDead
from understudy.lane.own_view import why_none
from understudy.types import Score


def spec(**limits: Any) -> ShadowSpec:
    return replace(shadow_spec(**limits), divergence=1.0)


@dataclass
class Keyed(WatchedEngine):
    """Writes down under which keys it was asked to leave or compare what it saw, in one list for all."""

    keys: list[str] = field(default_factory=list)

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        self.keys.append(f"{self.name} keep={request.keep} against={request.against}")
        return await super().score(request)


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
