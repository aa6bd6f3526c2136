"""The contract of engines/base.py over the engines without a model, and what the fake can be told to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.builders import answer, exchange, in_loop, turns

from understudy.engines.base import Engine, Health
from understudy.engines.fake import AbsentEngine, FakeEngine
from understudy.errors import EngineDead, EngineError
from understudy.types import Outcome

WHY = "EngineStartError: it has no weights"
ENGINES: dict[str, Callable[[], Engine]] = {
    "fake": lambda: FakeEngine("b"),
    "fake that fails": lambda: FakeEngine("b", fault=EngineDead(WHY)),
    "absent": lambda: AbsentEngine("b", WHY),
}
GIVEN = exchange("x", answer(4, 5), answer(), answer(6), prompt_token_ids=(1, 2, 3))


@pytest.mark.parametrize("name", ENGINES)
@in_loop
async def test_the_contract(name: str) -> None:
    engine = ENGINES[name]()
    assert engine.name == "b"
    assert isinstance(engine.health(), Health)
    assert engine.health().ready or engine.health().detail
    assert await engine.busy_s() >= 0.0
    try:
        request = await engine.prepare(GIVEN)
        assert request.model == "b"
        assert len(request.champion_token_ids) == len(GIVEN.champion.answers)
        assert request.rendered in ("token_ids", "own_template")
        scores = await engine.score(request)
        assert len(scores) == len(GIVEN.champion.answers)
        for score, token_ids in zip(scores, request.champion_token_ids, strict=True):
            assert len(score.logprobs) == len(score.ranks) == len(token_ids)
            assert all(rank >= 1 for rank in score.ranks)
            assert all(logprob <= 0.0 for logprob in score.logprobs)
        observation = await engine.generate(request)
        assert observation.model == "b"
        assert observation.outcome is Outcome.FINISHED
        assert observation.prompt_token_ids == request.prompt_token_ids
        assert observation.rendered == request.rendered
        assert observation.timings.end_to_end_s >= 0.0
    except EngineError as fault:
        assert fault.reason  # noqa: PT017  the word that is counted
        assert str(fault)  # noqa: PT017
    await engine.close()
    await engine.close()  # idempotent
    assert not engine.health().ready
    assert engine.health().detail


@in_loop
async def test_the_fake_gives_identical_ids_and_a_perfect_answer() -> None:
    engine = FakeEngine()
    request = await engine.prepare(GIVEN)
    assert request.prompt_token_ids is GIVEN.champion.prompt_token_ids
    assert request.champion_token_ids == ((4, 5), (), (6,))
    assert request.parameters is GIVEN.parameters
    observation = await engine.generate(request)
    assert tuple(given.token_ids for given in observation.answers) == request.champion_token_ids
    assert engine.generated == 1


@in_loop
async def test_a_request_that_was_only_scored_has_no_answers() -> None:
    observation = (await FakeEngine("b").prepare(GIVEN)).unanswered()
    assert observation.answers == ()
    assert observation.model == "b"
    assert observation.num_generated_tokens == 0


@in_loop
async def test_the_fake_hangs_until_it_is_let_go_and_notes_an_abort() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    request = await engine.prepare(GIVEN)
    hanging, lucky = (asyncio.create_task(engine.generate(request)) for _ in range(2))
    await turns(5)
    assert not hanging.done()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert (engine.aborted, engine.generated) == (1, 0)
    assert engine.gate is not None
    engine.gate.set()
    await lucky
    assert (engine.aborted, engine.generated) == (1, 1)


@in_loop
async def test_nothing_works_on_an_engine_that_did_not_come_up() -> None:
    engine = AbsentEngine("b", WHY)
    request = await FakeEngine().prepare(GIVEN)
    assert engine.health() == Health(False, WHY)
    for call in (engine.prepare(GIVEN), engine.score(request), engine.generate(request)):
        with pytest.raises(EngineDead, match=WHY) as raised:
            await call
        assert raised.value.reason == "engine_dead"
