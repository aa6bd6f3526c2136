"""For a divergence: on a slice the champion reads its own answer first, and leaves what it saw for its challengers.

Both cores are in one process (placement ``shared``), so whole distributions are compared where they are and only a
few numbers for each token leave. The champion's part runs on the core of the noise floor, never on the one that
answers users. Without it an exchange is scored as ever: nothing here ends or fails an exchange. Who waits for it has
given its turn back, so that a champion that reads slowly does not keep challengers from other exchanges. The noise
floor of the same exchange takes its scores from here: it is the same pass.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from understudy.engines.base import Engine
from understudy.errors import Unsupported
from understudy.lane.guard import Guard
from understudy.lane.sampling import is_sampled
from understudy.types import Exchange, Score

SALT = "divergence"
PATIENCE = 0.5
"""Of the time that an exchange has left when a challenger's turn comes."""


@dataclass(slots=True)
class View:
    """One exchange's: begun by the first challenger whose turn comes, forgotten when all have ended."""

    waiting: int
    task: asyncio.Task[tuple[Score, ...] | None] | None = None


class OwnView:
    """Belongs to the lane's event loop; see NoiseFloor for the arguments."""

    def __init__(
        self,
        engine: Engine | None,
        fraction: float,
        clock: Callable[[], float],
        guard: Guard,
        *,
        max_runs: int,
        max_waiting: int,
    ) -> None:
        self._engine = engine
        self._fraction = fraction
        self._clock = clock
        self._guard = guard
        self._runs = asyncio.Semaphore(max_runs)
        self._max_waiting = max_waiting
        self._waiting = 0
        self._views: dict[str, View] = {}
        self._counts: Counter[str] = Counter()

    def expect(self, exchange: Exchange, challengers: int) -> None:
        """So many challengers will meet this exchange, and each will be released."""
        if self._engine is not None and is_sampled(exchange.exchange_id, self._fraction, SALT):
            self._views[exchange.exchange_id] = View(challengers)

    def chose(self, exchange: Exchange) -> bool:
        """Whether there is something to wait for."""
        return exchange.exchange_id in self._views

    async def of(self, exchange: Exchange, deadline_s: float) -> str:
        """The key under which the champion's view lies; empty where there is none, or none in time."""
        task = self._task(exchange)
        if task is None:
            return ""
        if self._waiting < self._max_waiting:
            self._waiting += 1
            try:
                await asyncio.wait({task}, timeout=max(0.0, deadline_s - self._clock()) * PATIENCE)
            finally:
                self._waiting -= 1
        if not task.done() or task.cancelled():
            self._counts["late"] += 1
            return ""
        return "" if task.result() is None else exchange.exchange_id

    async def scores(self, exchange: Exchange) -> tuple[Score, ...] | None:
        """What the champion made of its own tokens when it read them; None where it does not or could not."""
        task = self._task(exchange)
        if task is None:
            return None
        await asyncio.wait({task})  # who is cancelled here does not cancel the reading
        return None if task.cancelled() else task.result()

    def release(self, exchange: Exchange) -> None:
        """It has ended for one challenger."""
        view = self._views.get(exchange.exchange_id)
        if view is not None:
            view.waiting -= 1
            if view.waiting <= 0:
                del self._views[exchange.exchange_id]
                if view.task is not None:
                    view.task.cancel()

    async def close(self) -> None:
        """Cancel what runs."""
        tasks = [view.task for view in self._views.values() if view.task is not None]
        self._views.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """How many exchanges were read, and why others were not."""
        return {"fraction": self._fraction, "counts": dict(self._counts)}

    def _task(self, exchange: Exchange) -> asyncio.Task[tuple[Score, ...] | None] | None:
        """The reading, begun by whoever asks first; None where the exchange was not chosen."""
        view = self._views.get(exchange.exchange_id)
        if view is None:
            return None
        if view.task is None:
            view.task = asyncio.create_task(self._read(exchange), name="own-view")
        return view.task

    async def _read(self, exchange: Exchange) -> tuple[Score, ...] | None:
        """The champion's scores of its answer, of which it has left what it saw; None where it could not read it."""
        assert self._engine is not None
        if not self._engine.health().ready:
            self._counts["not_ready"] += 1
            return None
        try:
            async with self._runs:
                request = await self._engine.prepare(exchange)
                scores = await self._engine.score(replace(request, keep=exchange.exchange_id))
        except Unsupported as fault:
            self._counts[fault.reason] += 1
            return None
        except Exception as fault:
            with self._guard("divergence"):
                raise
            self._counts[type(fault).__name__] += 1
            return None
        self._counts["read"] += 1
        return scores


def why_none(champion: Any, challenger: Any) -> str:
    """Why these two engines can have no divergence; empty where they can."""
    if not getattr(challenger, "same_tokenizer", True):
        return "it has another tokenizer"
    for whose, engine in (("the champion's", champion), ("its", challenger)):
        scoring = getattr(engine, "scoring", None) or {}
        if scoring.get("path") != "fused":
            return f"{whose} lm_head cannot be used without the model: {scoring.get('why') or 'it is not there'}"
    if champion.vocab_size != challenger.vocab_size:
        return f"its vocabulary has {challenger.vocab_size} tokens, the champion's {champion.vocab_size}"
    return ""
