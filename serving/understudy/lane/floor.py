"""The noise floor: on a slice, the champion meets its own exchange again, and every comparator compares the two.

Chosen by a hash of the exchange's id, run once for all challengers, in the lane and on a core of its own with the
champion's model, so that nothing of it reaches the core that answers users. It is no challenger: it has no counts
among theirs, and whatever goes wrong here is a reason on the exchange's floor and in status, never an ending. Who
waits for it has given its turn back, so that one that is slow makes endings late and no challenger slower.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from understudy.compare import Compare
from understudy.compare.likelihood import beside_own
from understudy.engines.base import Engine
from understudy.errors import Unsupported
from understudy.journey import shadow
from understudy.lane.guard import Guard
from understudy.lane.own_view import OwnView
from understudy.lane.sampling import is_sampled
from understudy.types import Comparison, Ending, Exchange, Floor, Observation

SALT = "floor"
PATIENCE = 0.9
"""Of the time that an exchange has left when its challenger is done: the rest is for writing the ending."""


@dataclass(slots=True)
class Rerun:
    """One exchange's second run: begun by the first challenger whose turn comes, gone when all have ended."""

    waiting: int
    task: asyncio.Future[Floor] | None = None


class NoiseFloor:
    """Belongs to the lane's event loop.

    Args:
        engine: the champion's model once more; None where there is none.
        fraction: of the sampled exchanges.
        compare: the comparators.
        clock: monotonic seconds.
        guard: counts and logs what goes wrong.
        score: whether the champion also scores its own tokens.
        own_view: where the exchange was chosen for a divergence too, the scores come from that pass.
        max_runs: at a time; the others wait.
        max_waiting: endings that wait for their floor, for all challengers; more are late at once.
    """

    def __init__(
        self,
        engine: Engine | None,
        fraction: float,
        compare: Compare,
        clock: Callable[[], float],
        guard: Guard,
        *,
        score: bool,
        own_view: OwnView,
        max_runs: int,
        max_waiting: int,
    ) -> None:
        self.engine = engine
        self.fraction = fraction
        self._compare = compare
        self._clock = clock
        self._guard = guard
        self._score = score
        self._own_view = own_view
        self._runs = asyncio.Semaphore(max_runs)
        self._max_waiting = max_waiting
        self._waiting = 0
        self._reruns: dict[str, Rerun] = {}
        self._counts: Counter[str] = Counter()

    def expect(self, exchange: Exchange, challengers: int) -> None:
        """So many challengers will meet this exchange, and each will be released."""
        if self.engine is not None and is_sampled(exchange.exchange_id, self.fraction, SALT):
            self._reruns[exchange.exchange_id] = Rerun(challengers)

    def bring(self, exchange_id: str, challengers: int, floor: Floor) -> None:
        """It has been run before: for a replay, in which the champion is not there."""
        known = asyncio.get_running_loop().create_future()
        known.set_result(floor)
        self._reruns[exchange_id] = Rerun(challengers, known)

    def owes(self, exchange: Exchange) -> bool:
        """Whether the second run is still to be begun, by whoever's turn comes first."""
        rerun = self._reruns.get(exchange.exchange_id)
        return rerun is not None and rerun.task is None

    def begin(self, exchange: Exchange) -> None:
        """A challenger's turn has come, so it is the floor's as well."""
        rerun = self._reruns.get(exchange.exchange_id)
        if rerun is not None and rerun.task is None:
            rerun.task = asyncio.create_task(self._run(exchange), name="noise-floor")

    async def beside(self, exchange: Exchange, ending: Ending, deadline_s: float) -> Ending:
        """The ending with its floor. Waits for it at most until shortly before the deadline."""
        rerun = self._reruns.get(exchange.exchange_id)
        if rerun is None or rerun.task is None:
            return ending
        if self._waiting < self._max_waiting:
            self._waiting += 1
            try:
                await asyncio.wait({rerun.task}, timeout=max(0.0, deadline_s - self._clock()) * PATIENCE)
            finally:
                self._waiting -= 1
        known = rerun.task.done() and not rerun.task.cancelled()
        return with_floor(ending, rerun.task.result() if known else Floor(reason="late"))

    def release(self, exchange: Exchange, ending: Ending) -> Ending:
        """It has ended for one challenger; the last one ends the second run. A chosen exchange says so."""
        rerun = self._reruns.get(exchange.exchange_id)
        if rerun is None:
            return ending
        rerun.waiting -= 1
        if rerun.waiting <= 0:
            del self._reruns[exchange.exchange_id]
            if rerun.task is not None:
                rerun.task.cancel()  # nobody needs it any more: aborted in the engine where it still runs
        return ending if ending.floor is not None else replace(ending, floor=Floor(reason="not_run"))

    async def close(self) -> None:
        """Cancel what runs."""
        tasks = [rerun.task for rerun in self._reruns.values() if rerun.task is not None]
        self._reruns.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> Mapping[str, Any]:
        """For people: whether it can run, how its runs ended, whose weights it uses, and what its steps took."""
        health = None if self.engine is None else self.engine.health()
        return {
            "fraction": self.fraction,
            "ready": health is not None and health.ready,
            "detail": "" if health is None else health.detail,
            "counts": dict(self._counts),
            "weights": dict(getattr(self.engine, "weights", {})),
            "steps": None if (steps := getattr(self.engine, "steps", None)) is None else asdict(steps()),
        }

    async def _run(self, exchange: Exchange) -> Floor:
        """The champion against itself, or why not. Only cancellation leaves here as an exception."""
        assert self.engine is not None
        if not self.engine.health().ready:
            return self._counted(Floor(reason="not_ready"))
        try:
            async with self._runs:
                known = await self._own_view.scores(exchange) if self._score else None
                ending = await shadow(
                    exchange, self.engine, score=self._score, generate=True, compare=self._against_itself, scores=known
                )
        except Unsupported as fault:
            return self._counted(Floor(reason=fault.reason))
        except Exception as fault:
            with self._guard("noise floor"):
                raise
            return self._counted(Floor(reason=type(fault).__name__))
        return self._counted(Floor(ending.challenger, ending.comparison))

    async def _against_itself(self, exchange: Exchange, again: Observation) -> Comparison:
        """Under the champion's name: its core has another one, for which there are no token prices."""
        return await self._compare(exchange, replace(again, model=exchange.champion.model))

    def _counted(self, floor: Floor) -> Floor:
        self._counts[floor.reason or "measured"] += 1
        return floor


def with_floor(ending: Ending, floor: Floor) -> Ending:
    """The ending with its floor, and with what the champion's own reading says about the challenger's."""
    comparison, seen = ending.comparison, ending.challenger
    if comparison is None or floor.comparison is None or seen is None or seen.rendered != "token_ids":
        return replace(ending, floor=floor)
    values = beside_own(floor.comparison.values, comparison.values)
    return replace(ending, comparison=Comparison(values), floor=floor)
