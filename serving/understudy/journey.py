"""The journey of one request, top to bottom. Read this file first; the numbers are the README's.

    1. An OpenAI-style request reaches vLLM's own API server app, mounted in a Ray Serve replica.
    2. That app calls generate() on our fork, which has vLLM's EngineClient interface.
    3. The fork streams the champion's outputs through untouched and remembers them.
    4. When the answer has been sent, the exchange is offered to the lane (O(1), never raises).
    5. The record keeper makes the exchange durable.
    6. The lane waits for its turn: budget, pressure, deadline; otherwise it sheds with a reason.
    7. The challenger scores the champion's tokens in one pass, and generates its own answer.
    8. Comparators turn the two observations into numbers; the record keeper stores them.
    9. Gates update the verdict; metrics, report and status show it.

Nothing here knows vLLM, Ray, torch or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from understudy.compare import Compare
from understudy.engines.base import Engine
from understudy.types import Ending, Exchange, Observation, Outcome, Score, State

Output = TypeVar("Output")
Seen_contra = TypeVar("Seen_contra", contravariant=True)


class Witness(Protocol[Seen_contra]):
    """Remembers a champion generation by reference. Neither method awaits or raises."""

    def see(self, output: Seen_contra) -> None:
        """Keep one output of the champion."""

    def close(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """Say how the generation ended."""


AWitness = TypeVar("AWitness", bound=Witness[Any])


async def answer(
    outputs: AsyncGenerator[Output, None],
    witness: AWitness,
    hand_over: Callable[[AWitness], None],
) -> AsyncGenerator[Output, None]:
    """Steps 3 and 4: the user's path. Everything the user sees is yielded by the champion itself.

    Args:
        outputs: the champion's stream, closed here whatever happens, so that its work is aborted.
        witness: sees each output before it is passed on.
        hand_over: called exactly once, at the end; it must not raise.

    Raises:
        Whatever the champion raises, unchanged.
    """
    outcome, error = Outcome.CANCELLED, None
    try:
        async with aclosing(outputs):
            async for output in outputs:
                witness.see(output)  # 3
                yield output
        outcome = Outcome.FINISHED
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as raised:
        outcome, error = Outcome.FAILED, raised
        raise
    finally:
        witness.close(outcome, error)
        hand_over(witness)  # 4


async def shadow(
    exchange: Exchange,
    challenger: Engine,
    *,
    score: bool,
    generate: bool,
    compare: Compare,
    against: str = "",
    scores: tuple[Score, ...] | None = None,
    scored: Callable[[Observation], object] = lambda _so_far: None,
) -> Ending:
    """Steps 7 and 8: the challenger meets the request. Called by the lane when its turn has come (6).

    Args:
        exchange: what the champion was asked and said.
        challenger: meets it.
        score: whether it reads the champion's tokens.
        generate: whether it gives an answer of its own.
        compare: the comparators.
        against: where the champion's view of its own tokens was left, for a divergence; empty for none.
        scores: of the champion's tokens, where this engine has read them before; None where it has not.
        scored: told of the challenger's observation so far, before it answers: what is left of it should that fail.

    Returns:
        The ending with both observations compared. Faults raise; the lane's guard turns them into endings.
    """
    request = await challenger.prepare(exchange)  # identical token ids, or its own template: law 3
    request = replace(request, against=against)
    if scores is None:
        scores = await challenger.score(request) if score else ()  # 7, the cheap half
    scored(replace(request.unanswered(), scores=scores))
    observation = await challenger.generate(request) if generate else request.unanswered()  # 7, its own answer
    observation = replace(observation, scores=scores)
    comparison = await compare(exchange, observation)  # 8
    return Ending(State.COMPARED, challenger=observation, comparison=comparison)
