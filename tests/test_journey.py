"""answer(), the user's path, and shadow(), the challenger's: see understudy/journey.py."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import inspect
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tests.builders import WatchedEngine, answer, exchange, in_loop, turns, word

from understudy import journey
from understudy.compare import Comparators
from understudy.engines.fake import FakeEngine
from understudy.types import Outcome


@dataclass
class Record:
    """The witness, the champion's stream and hand_over in one: what happened, in order."""

    happened: list[Any] = field(default_factory=list)
    outcome: Outcome | None = None
    error: BaseException | None = None

    def see(self, output: object) -> None:
        self.happened.append(("saw", output))

    def close(self, outcome: Outcome, error: BaseException | None = None) -> None:
        assert self.outcome is None, "closed twice"
        self.outcome, self.error = outcome, error
        self.happened.append("witness closed")

    def hand_over(self, witness: object) -> None:
        assert witness is self
        self.happened.append("handed over")

    async def champion(
        self, *outputs: object, fault: BaseException | None = None, hang: bool = False
    ) -> AsyncGenerator[object, None]:
        try:
            for output in outputs:
                yield output
                await asyncio.sleep(0)
            if hang:
                await asyncio.Event().wait()
            if fault is not None:
                raise fault
        finally:
            self.happened.append("champion closed")

    def answer(self, outputs: AsyncGenerator[object, None]) -> AsyncGenerator[object, None]:
        """What the fork gives to vLLM's server."""
        return cast("AsyncGenerator[object, None]", journey.answer(outputs, self, self.hand_over))

    @property
    def end(self) -> list[Any]:
        """What happened after the last output was seen."""
        return [each for each in self.happened if not isinstance(each, tuple)]


ENDED = ["champion closed", "witness closed", "handed over"]


@in_loop
async def test_the_same_objects_pass_through_in_order_and_each_was_seen_first() -> None:
    record, outputs = Record(), [object() for _ in range(5)]
    seen: list[object] = []
    async for output in record.answer(record.champion(*outputs)):
        assert record.happened[-1] == ("saw", output)
        seen.append(output)
    assert all(mine is theirs for mine, theirs in zip(seen, outputs, strict=True))
    assert record.end == ENDED
    assert (record.outcome, record.error) == (Outcome.FINISHED, None)


@in_loop
async def test_an_empty_answer_is_finished_too() -> None:
    record = Record()
    assert [output async for output in record.answer(record.champion())] == []
    assert record.end == ENDED
    assert record.outcome is Outcome.FINISHED


@in_loop
async def test_nothing_is_handed_over_before_the_end_of_the_answer() -> None:
    record = Record()
    stream = record.answer(record.champion("a", "b"))
    assert await anext(stream) == "a"
    assert await anext(stream) == "b"
    await turns(5)
    assert record.end == []
    await stream.aclose()
    assert record.end == ENDED


@pytest.mark.parametrize("fault", [ValueError("no"), RuntimeError("gone"), OSError("disk"), KeyboardInterrupt()])
@in_loop
async def test_an_error_of_the_champion_reaches_the_user_unchanged(fault: BaseException) -> None:
    record = Record()
    stream = record.answer(record.champion("a", fault=fault))
    assert await anext(stream) == "a"
    with pytest.raises(type(fault)) as raised:
        await anext(stream)
    assert raised.value is fault
    assert fault.__cause__ is None
    assert fault.__context__ is None
    assert record.end == ENDED
    assert (record.outcome, record.error) == (Outcome.FAILED, fault)


@in_loop
async def test_an_error_before_the_first_token_is_one_too() -> None:
    record, fault = Record(), ValueError("too long")
    with pytest.raises(ValueError, match="too long") as raised:
        await anext(record.answer(record.champion(fault=fault)))
    assert raised.value is fault
    assert record.outcome is Outcome.FAILED
    assert record.end == ENDED


@in_loop
async def test_a_consumer_that_leaves_early_closes_the_champion_before_aclose_returns() -> None:
    record = Record()
    stream = record.answer(record.champion("a", "b", "c"))
    assert await anext(stream) == "a"
    await stream.aclose()
    assert record.happened == [("saw", "a"), *ENDED]
    assert (record.outcome, record.error) == (Outcome.CANCELLED, None)
    await stream.aclose()  # again: nothing is handed over twice
    assert record.end == ENDED


@in_loop
async def test_a_consumer_that_stops_after_the_last_token_has_let_the_witness_see_all() -> None:
    """vLLM's server may not ask for the end of the stream; the witness decides by what it saw."""
    record = Record()
    stream = record.answer(record.champion("a", "last"))
    async with contextlib.aclosing(stream):
        async for output in stream:
            if output == "last":
                break
    assert [each[1] for each in record.happened if isinstance(each, tuple)] == ["a", "last"]
    assert record.end == ENDED
    assert record.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("num_outputs", [0, 2])
@in_loop
async def test_a_consumer_that_is_cancelled_while_it_waits_closes_the_champion(num_outputs: int) -> None:
    record, waiting = Record(), asyncio.Event()

    async def consume() -> None:
        stream = record.answer(record.champion(*range(num_outputs), hang=True))
        async with contextlib.aclosing(stream):
            for _ in range(num_outputs):
                await anext(stream)
            waiting.set()
            await anext(stream)

    task = asyncio.create_task(consume())
    await waiting.wait()
    await turns(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert record.end == ENDED
    assert (record.outcome, record.error) == (Outcome.CANCELLED, None)


@in_loop
async def test_a_stream_that_is_only_dropped_is_handed_over_once_all_the_same() -> None:
    record = Record()
    stream = record.answer(record.champion("a", "b"))
    await anext(stream)
    del stream
    gc.collect()
    await turns(10)
    assert record.end == ENDED
    assert record.outcome is Outcome.CANCELLED


@in_loop
async def test_a_stream_that_was_never_asked_for_anything_is_no_exchange() -> None:
    """The champion never saw the request either: its generator was not started."""
    record = Record()
    outputs = record.champion("a")
    stream = record.answer(outputs)
    await stream.aclose()
    await outputs.aclose()
    assert record.happened == []


@in_loop
async def test_streams_side_by_side_keep_apart() -> None:
    records = [Record() for _ in range(10)]

    async def consume(number: int, record: Record) -> list[object]:
        outputs = [(number, index) for index in range(number)]
        return [output async for output in record.answer(record.champion(*outputs))]

    answers = await asyncio.gather(*(consume(*each) for each in enumerate(records)))
    assert [len(each) for each in answers] == list(range(10))
    for number, record in enumerate(records):
        assert [each for each in record.happened if isinstance(each, tuple)] == [
            ("saw", (number, index)) for index in range(number)
        ]
        assert record.end == ENDED


@pytest.mark.parametrize("leave", ["finish", "close", "fail"])
@in_loop
async def test_hand_over_comes_exactly_once_and_last(leave: str) -> None:
    record = Record()
    stream = record.answer(record.champion("a", fault=ValueError("x") if leave == "fail" else None))
    await anext(stream)
    if leave == "close":
        await stream.aclose()
    else:
        with contextlib.suppress(ValueError, StopAsyncIteration):
            await anext(stream)
    for _ in range(2):  # whatever the consumer still asks for
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    await stream.aclose()
    assert record.happened.count("handed over") == 1
    assert record.happened[-1] == "handed over"


@pytest.mark.parametrize(
    ("score", "generate", "calls"),
    [
        (True, True, ["prepare", "score", "generate"]),
        (True, False, ["prepare", "score"]),
        (False, True, ["prepare", "generate"]),
    ],
)
@in_loop
async def test_shadow_does_what_it_is_asked_cheapest_first(score: bool, generate: bool, calls: list[str]) -> None:
    engine = WatchedEngine("b")
    ending = await journey.shadow(exchange(), engine, score=score, generate=generate, compare=Comparators())
    assert engine.calls == calls
    assert word(ending) == "compared"
    assert ending.challenger is not None
    assert ending.challenger.model == "b"
    assert bool(ending.challenger.scores) == score
    assert bool(ending.challenger.answers) == generate


@in_loop
async def test_shadow_gives_the_challenger_the_champions_prompt_ids() -> None:
    seen: list[Any] = []

    def remember(prompt: tuple[int, ...], champion: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        seen.append((prompt, champion))
        return champion

    given = exchange("x", answer(4, 5), answer(6), prompt_token_ids=(9, 8, 7))
    ending = await journey.shadow(given, FakeEngine(answers=remember), score=True, generate=True, compare=Comparators())
    assert seen == [((9, 8, 7), ((4, 5), (6,)))]
    assert ending.challenger is not None
    assert [len(score.ranks) for score in ending.challenger.scores] == [2, 1]
    assert ending.comparison is not None
    assert ending.comparison.values["exact_match"] == 1.0


@pytest.mark.parametrize("where", ["prepare", "score", "generate"])
@in_loop
async def test_shadow_raises_what_the_engine_raises(where: str) -> None:
    fault = RuntimeError("x")
    with pytest.raises(RuntimeError) as raised:
        await journey.shadow(
            exchange(), WatchedEngine(faults={where: fault}), score=True, generate=True, compare=Comparators()
        )
    assert raised.value is fault


def test_the_journey_knows_no_framework() -> None:
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(journey))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported <= {
        "__future__",
        "asyncio",
        "collections",
        "contextlib",
        "dataclasses",
        "typing",
        "understudy",
    }
