"""Steps 4 to 9 for every challenger: take what is offered, keep it, wait for its turn, run it, account for it.

``offer`` is the only call on the answer's path. Everything else runs in the lane's own tasks, so that neither a
client that leaves nor a request that ends can cut it short.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from understudy.compare import Comparators, Compare
from understudy.config import ShadowSpec
from understudy.engines.base import Engine
from understudy.errors import EngineError, Unsupported
from understudy.journey import shadow
from understudy.lane.breaker import Breaker
from understudy.lane.budget import TokenBudget
from understudy.lane.floor import NoiseFloor
from understudy.lane.guard import Guard
from understudy.lane.holding import held_bytes
from understudy.lane.ledger import Counted, Ledger, total
from understudy.lane.own_view import OwnView
from understudy.lane.sampling import is_sampled
from understudy.types import Ending, Exchange, Floor, Observation, Outcome, Phase, State, unseen

MAX_INBOX = 100_000  # exchanges; what they hold in memory is bounded by max_pending_bytes
MAX_UNSEEN = 100_000  # ids; beyond it they are only counted
PRESSURE_POLL_S = 0.02
BUSY_LAP_S = 0.0005
"""Of a turn of the event loop. One with nothing to do takes 0.002 ms; where it begins to be busy was not tuned."""
LAP_POLL_S = 0.002
MAX_LATE_S = 1.0
"""Of an exchange that waits for a gap of the event loop. It is in memory until then, and in no record."""
MAX_AT_ONCE_S = 0.002
"""Of a turn of the event loop, in which exchanges are taken in that are late."""


class Offered(Protocol):
    """What the fork hands over: enough to decide, and a way to the whole exchange, off the answer's path."""

    @property
    def exchange_id(self) -> str:
        """Ours; sampling hashes it."""

    @property
    def shadow_off(self) -> bool:
        """Whether the client opted out."""

    @property
    def unsupported(self) -> str | None:
        """Why no challenger can meet it, where that is known already; it is shed for that reason."""

    @property
    def held_bytes(self) -> int:
        """About what it keeps in memory until it is taken in. A number that is known already: asked on the path."""

    def complete(self) -> Exchange:
        """The exchange. Copies; called once, by the lane."""


class Witnesses(Protocol):
    """Who hears what the lane does: the record keeper (5, 8) and the judge (9)."""

    def accepted(self, exchange: Exchange, challengers: Sequence[str], offered: Mapping[str, int]) -> None:
        """An exchange was sampled; ``offered`` counts all that reached the lane so far, by challenger."""

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        """It ended for one challenger."""


class Turn:
    """One of the ``max_concurrency`` of a challenger. Given back early by who waits for something else."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        """``turns``: where it was taken from just now."""
        self._turns = turns
        self._held = True

    def give_back(self) -> None:
        """Idempotent."""
        if self._held:
            self._held = False
            self._turns.release()

    async def take_again(self) -> None:
        """Wait for one, behind who came before."""
        await self._turns.acquire()
        self._held = True


@dataclass
class Side:
    """One challenger in the lane."""

    engine: Engine
    breaker: Breaker
    budget: TokenBudget
    ledger: Ledger = field(default_factory=Ledger)
    queue: deque[tuple[Exchange, float]] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    running: set[asyncio.Task[Ending]] = field(default_factory=set)
    held_bytes: int = 0
    """Of all exchanges that wait or run; one alone may be larger than the limit."""


class Lane:
    """The lane of one replica. It belongs to one event loop.

    Args:
        engines: the challengers.
        spec: sampling and limits.
        witnesses: hear of every accepted exchange and of every ending.
        champion_load: how many requests the champion is answering now.
        clock: monotonic seconds.
        guard: counts and logs what goes wrong; its own where none is given.
        compare: the comparators; the default ones where none are given.
        over_cap: (reason, detail) while the shadow has taken all that it may (meter/caps.py).
        floor: the champion's model once more, for the noise floor and divergences; None where there is none.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        spec: ShadowSpec,
        witnesses: Witnesses,
        champion_load: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        guard: Guard | None = None,
        compare: Compare | None = None,
        over_cap: Callable[[], tuple[str, str] | None] = lambda: None,
        floor: Engine | None = None,
    ) -> None:
        limits = spec.limits
        self.spec = spec
        self.guard = guard or Guard()
        self._compare = compare or Comparators(guard=self.guard)
        bounds = {"max_runs": limits.max_concurrency, "max_waiting": limits.max_pending}
        self._own_view = OwnView(floor, spec.divergence, clock, self.guard, **bounds)
        self.floor = NoiseFloor(
            floor,
            spec.noise_floor,
            self._compare,
            clock,
            self.guard,
            score=spec.score,
            own_view=self._own_view,
            **bounds,
        )
        self.paused = False
        self._witnesses = witnesses
        self._champion_load = champion_load
        self._over_cap = over_cap
        self._clock = clock
        self._inbox: deque[tuple[Offered, int, float]] = deque()
        self._inbox_bytes = 0
        self._unseen: deque[tuple[str, float]] = deque()
        self._moved = asyncio.Event()
        self._closing = False
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.sides = {
            engine.name: Side(
                engine,
                Breaker(limits.breaker_faults, limits.breaker_cooldown_s, clock),
                TokenBudget(limits.max_tokens_per_s, clock),
            )
            for engine in engines
        }

    def offer(self, offered: Offered) -> None:
        """Step 4, on the answer's path: O(1), never awaits, never raises, keeps one reference."""
        size_bytes = 0
        try:  # costs nothing where nothing is raised; entering a guard takes half a microsecond
            size_bytes = offered.held_bytes
        except Exception:
            with self.guard("offer"):
                raise
        if self._inbox and (
            len(self._inbox) >= MAX_INBOX or self._inbox_bytes + size_bytes > self.spec.limits.max_pending_bytes
        ):
            self._shed_unseen(offered)
            return
        self._inbox.append((offered, size_bytes, time.monotonic()))
        self._inbox_bytes += size_bytes
        self._wake.set()

    def start(self) -> None:
        """Start the lane's tasks; needs a running loop."""
        self._tasks = [asyncio.create_task(self._take_in(), name="lane-intake")]
        for side in self.sides.values():
            self._tasks.append(asyncio.create_task(self._run_side(side), name=f"lane-{side.engine.name}"))

    async def close(self) -> None:
        """Stop. What was offered is counted and recorded; what is pending ends as expired at the next start."""
        self._closing = True
        while self._inbox or self._unseen:
            self._take_next()
        running = [task for side in self.sides.values() for task in side.running]
        for task in (*self._tasks, *running):
            task.cancel()
        await asyncio.gather(*self._tasks, *running, return_exceptions=True)
        await self.floor.close()
        await self._own_view.close()

    async def idle(self) -> None:
        """Return when nothing is waiting or running: for tests and benchmarks."""
        while self._inbox or self._unseen or any(side.ledger.pending for side in self.sides.values()):
            self._moved.clear()
            await self._moved.wait()

    async def room(self, max_pending: int) -> None:
        """Return when no challenger has more than ``max_pending`` before it: for who can wait, offline."""
        while len(self._inbox) + max((side.ledger.pending for side in self.sides.values()), default=0) >= max_pending:
            self._moved.clear()
            await self._moved.wait()

    def pause(self) -> None:
        """The kill switch: nothing starts, what waits is shed, what runs is aborted and shed.

        What is complete and only waits for its noise floor ends as it was, without one.
        """
        self.paused = True
        for side in self.sides.values():
            while side.queue:
                exchange, _ = side.queue.popleft()
                side.held_bytes -= held_bytes(exchange)
                self._end(side, exchange, Ending(State.SHED, "paused"))
            for task in side.running:
                task.cancel()

    def resume(self) -> None:
        """Shadow again, from the next exchange on."""
        self.paused = False

    def phase(self) -> Phase:
        """What the shadow as a whole is doing."""
        if self.paused:
            return Phase.PAUSED
        ready = any(side.engine.health().ready for side in self.sides.values())
        return Phase.SHADOWING if ready and self.spec.sample > 0 else Phase.OFF

    def counts(self) -> dict[str, dict[str, Any]]:
        """The ledgers, by challenger."""
        return {name: side.ledger.counts() for name, side in self.sides.items()}

    def offered(self) -> dict[str, int]:
        """How many exchanges reached the lane, by challenger."""
        return {name: side.ledger.offered for name, side in self.sides.items()}

    def restore(self, counts: Mapping[str, Counted]) -> None:
        """Go on counting where an earlier run stopped; challengers that are no more are left out."""
        for name, counted in counts.items():
            if name in self.sides:
                self.sides[name].ledger.restore(counted)

    def totals(self) -> dict[str, Any]:
        """Their sums."""
        return total(self.counts().values())

    # 4, off the path: decide, keep, queue

    async def _take_in(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._inbox or self._unseen:
                await self._gap()
                until_s = time.monotonic() + MAX_AT_ONCE_S
                self._take_next()
                while (self._inbox or self._unseen) and self._is_late() and time.monotonic() < until_s:
                    self._take_next()

    async def _gap(self) -> None:
        """Return when the event loop has a moment, or the oldest exchange has waited for one long enough.

        The champion's answers are streamed by this loop too. Near its capacity what the lane does at once, 0.2 ms an
        exchange, stands before them and they wait in line behind it; what it does in a gap does not.
        """
        while True:
            began_s = time.monotonic()  # of the loop's turns, and not of what the lane does
            await asyncio.sleep(0)  # one turn
            now_s = time.monotonic()
            if now_s - began_s < BUSY_LAP_S or self._is_late():
                return
            await asyncio.sleep(LAP_POLL_S)

    def _is_late(self) -> bool:
        return time.monotonic() - self._oldest_s() >= MAX_LATE_S

    def _oldest_s(self) -> float:
        """When what is taken in next was offered."""
        return min(queue[0][-1] for queue in (self._inbox, self._unseen) if queue)

    def _take_next(self) -> None:
        with self.guard("intake"):
            if self._inbox and self._inbox[0][-1] <= self._oldest_s():
                offered, size_bytes, _ = self._inbox.popleft()
                self._inbox_bytes -= size_bytes
                self._take_one(offered)
            else:
                self._tell_unseen(self._unseen.popleft()[0], Ending(State.SHED, "inbox_full"))
        self._moved.set()

    def _take_one(self, offered: Offered) -> None:
        for side in self.sides.values():
            side.ledger.offer()
        if offered.shadow_off or not is_sampled(offered.exchange_id, self.spec.sample):
            return
        for side in self.sides.values():
            side.ledger.sample()
        exchange: Exchange | None = None
        with self.guard("intake"):
            exchange = offered.complete()
        if exchange is not None:
            self._accept(exchange, offered.unsupported)
            return
        ending = Ending(State.FAILED, "unreadable")
        for side in self.sides.values():  # it could not be read: still accounted for
            side.ledger.end(ending)
        self._tell_unseen(offered.exchange_id, ending)

    def _accept(self, exchange: Exchange, unsupported: str | None) -> None:
        """Step 5, and the queue of each challenger."""
        with self.guard("record"):
            self._witnesses.accepted(exchange, list(self.sides), self.offered())
        self.floor.expect(exchange, len(self.sides))
        self._own_view.expect(exchange, len(self.sides))
        for side in self.sides.values():
            ending: Ending | None = Ending(State.FAILED, "internal")  # unless the next lines say otherwise
            with self.guard("intake"):
                ending = self._ends_at_once(side, exchange, unsupported)
            if ending is not None:
                self._end(side, exchange, ending)
            else:
                side.held_bytes += held_bytes(exchange)
                side.queue.append((exchange, self._clock() + self.spec.limits.deadline_s))
                side.wake.set()

    def _shed_unseen(self, offered: Offered) -> None:
        """The lane is so far behind that not even the exchange is kept: counted now, and told to the record later."""
        sampled = not offered.shadow_off and is_sampled(offered.exchange_id, self.spec.sample)
        for side in self.sides.values():
            side.ledger.offer()
            if sampled:
                side.ledger.sample()
                side.ledger.end(Ending(State.SHED, "inbox_full"))
        if sampled and len(self._unseen) < MAX_UNSEEN:
            self._unseen.append((offered.exchange_id, time.monotonic()))

    def _tell_unseen(self, exchange_id: str, ending: Ending) -> None:
        """The record hears of what is counted already, so that the counts are the same after a restart."""
        exchange = unseen(exchange_id, time.time())
        with self.guard("record"):
            self._witnesses.accepted(exchange, list(self.sides), self.offered())
        for name in self.sides:
            with self.guard("record"):
                self._witnesses.ended(exchange, name, ending)

    def _ends_at_once(self, side: Side, exchange: Exchange, unsupported: str | None) -> Ending | None:
        if exchange.champion.outcome is Outcome.CANCELLED:
            return Ending(State.CANCELLED)
        if exchange.champion.outcome is Outcome.FAILED:
            return Ending(State.FAILED, "champion_failed", exchange.champion.error)
        if unsupported is not None:
            return Ending(State.SHED, unsupported)
        if self.paused:
            return Ending(State.SHED, "paused")
        health = side.engine.health()
        if not health.ready:
            return Ending(State.SHED, health.reason, health.detail)
        over = self._over_cap()
        if over is not None:
            return Ending(State.SHED, *over)
        if len(side.queue) >= self.spec.limits.max_pending:
            return Ending(State.SHED, "queue_full")
        if side.held_bytes and side.held_bytes + held_bytes(exchange) > self.spec.limits.max_pending_bytes:
            return Ending(State.SHED, "queue_full", f"what waits holds {side.held_bytes / 2**20:.0f} MiB")
        return None

    # 6, wait for the turn

    async def _run_side(self, side: Side) -> None:
        turns = asyncio.Semaphore(self.spec.limits.max_concurrency)
        while True:
            while not side.queue:  # before it takes a turn: who gave one back may want one again
                side.wake.clear()
                await side.wake.wait()
            await turns.acquire()
            if not side.queue:  # pause() emptied it
                turns.release()
                continue
            exchange, deadline_s = side.queue.popleft()
            turn = Turn(turns)
            task = asyncio.create_task(self._ending(side, exchange, deadline_s, turn))
            side.running.add(task)
            task.add_done_callback(partial(self._finished, side, exchange, turn))

    def _finished(self, side: Side, exchange: Exchange, turn: Turn, task: asyncio.Task[Ending]) -> None:
        """A callback and not the end of the task, because a task that is cancelled early has no end of its own."""
        side.running.discard(task)
        side.held_bytes -= held_bytes(exchange)
        turn.give_back()
        if not task.cancelled():
            ending = Ending(State.FAILED, "internal", str(task.exception()))  # unless there is a better one
            with self.guard("lane"):
                ending = task.result()
            self._end(side, exchange, ending)
        elif not self._closing:
            side.breaker.abandoned()
            self._end(side, exchange, Ending(State.SHED, "paused"))

    async def _ending(self, side: Side, exchange: Exchange, deadline_s: float, turn: Turn) -> Ending:
        """Steps 6 to 8, and the noise floor beside them where this exchange was chosen for it."""
        ending = await self._met(side, exchange, deadline_s, turn)
        turn.give_back()
        try:
            return await self.floor.beside(exchange, ending, deadline_s)
        except asyncio.CancelledError:  # paused or closed while it waited: what the challenger did is complete
            return replace(ending, floor=Floor(reason="paused" if self.paused else "closed"))

    async def _met(self, side: Side, exchange: Exchange, deadline_s: float, turn: Turn) -> Ending:
        """Steps 6 to 8 with every way to end."""
        if side.breaker.blocks():  # before it waits and spends
            return Ending(State.SHED, "breaker_open", side.breaker.last_fault)
        waited = await self._turn(side, exchange, deadline_s)
        if waited is not None:
            return waited
        if not side.breaker.admits():
            return Ending(State.SHED, "breaker_open", side.breaker.last_fault)
        self.floor.begin(exchange)
        against = ""
        if self._own_view.chose(exchange):
            turn.give_back()
            against = await self._own_view.of(exchange, deadline_s)
            await turn.take_again()
            if self._clock() >= deadline_s:
                side.breaker.abandoned()
                return Ending(State.EXPIRED, None, "waited for its turn until the deadline: divergence")
        before, began_s = side.engine.device_use(), self._clock()
        so_far: list[Observation] = []
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self._clock())) as deadline:
                ending = await shadow(
                    exchange,
                    side.engine,
                    score=self.spec.score,
                    generate=self.spec.generate,
                    compare=self._compare,
                    against=against,
                    scored=so_far.append,
                )
        except asyncio.CancelledError:
            if _told_to_stop():
                raise
            detail = "the engine cancelled the work itself"
            side.breaker.failed(detail)
            return Ending(State.FAILED, "CancelledError", detail, self._left_of(so_far, f"CancelledError: {detail}"))
        except Unsupported as fault:
            side.breaker.abandoned()
            return Ending(State.SHED, fault.reason, str(fault))
        except Exception as fault:  # the guard's business: counted, logged, never the champion's
            if isinstance(fault, TimeoutError) and deadline.expired():  # ours, not one of the engine
                if side.engine.device_use().was_starved(before, self._clock() - began_s):
                    side.breaker.abandoned()  # it is not to blame
                    return Ending(State.SHED, "starved", "the other models left it no time on the device")
                side.breaker.failed("no answer before the deadline")
                return Ending(State.EXPIRED, None, "the challenger did not answer before the deadline")
            with self.guard(f"shadow {side.engine.name}"):
                raise
            error = f"{type(fault).__name__}: {fault}"
            side.breaker.failed(error)
            return Ending(State.FAILED, reason_of(fault), str(fault), self._left_of(so_far, error))
        side.breaker.succeeded()
        return ending

    def _left_of(self, so_far: Sequence[Observation], error: str) -> Observation | None:
        """What a challenger that failed has read before; None where that was nothing."""
        if not so_far or not so_far[-1].scores:
            return None
        seen = so_far[-1]
        timings = replace(seen.timings, finished_s=self._clock())
        return replace(seen, outcome=Outcome.FAILED, error=error, timings=timings)

    async def _turn(self, side: Side, exchange: Exchange, deadline_s: float) -> Ending | None:
        """Wait while the champion is under pressure or the budget is spent; None when the turn has come."""
        why = "pressure"
        while True:
            now = self._clock()
            if now >= deadline_s:
                return Ending(State.EXPIRED, None, f"waited for its turn until the deadline: {why}")
            health = side.engine.health()
            if not health.ready:
                return Ending(State.SHED, health.reason, health.detail)
            over = self._over_cap()
            if over is not None:
                return Ending(State.SHED, *over)
            if self._champion_load() > self.spec.limits.yield_above:
                why, wait_s = "pressure", PRESSURE_POLL_S
            else:
                why, wait_s = "budget", side.budget.wait_s(self._num_tokens(exchange))
            if wait_s <= 0.0:
                return None
            if now + wait_s > deadline_s and why == "budget":
                return Ending(State.SHED, "budget", f"{wait_s:.1f} s until max_tokens_per_s allows it")
            await asyncio.sleep(wait_s)

    def _num_tokens(self, exchange: Exchange) -> int:
        """With the second run of the champion, where this turn begins it."""
        return num_tokens(exchange, self.spec) * (2 if self.floor.owes(exchange) else 1)

    def _end(self, side: Side, exchange: Exchange, ending: Ending) -> None:
        ending = self.floor.release(exchange, ending)
        self._own_view.release(exchange)
        side.ledger.end(ending)
        with self.guard("record"):
            self._witnesses.ended(exchange, side.engine.name, ending)
        self._moved.set()

    def status(self) -> Mapping[str, Any]:
        """What only the lane knows: the errors that its guard swallowed, by operation."""
        return {
            "swallowed": dict(self.guard.swallowed),
            "noise_floor": self.floor.status(),
            "divergence": self._own_view.status(),
        }


def num_tokens(exchange: Exchange, spec: ShadowSpec) -> int:
    """Tokens the challenger will read and write, taking the champion's length for its own.

    Scoring reads the prompt once for each of the n answers, generating reads it once for all.
    """
    prompt, answer = len(exchange.champion.prompt_token_ids), exchange.champion.num_generated_tokens
    scored = prompt * len(exchange.champion.answers) + answer if spec.score else 0
    return scored + (prompt + answer if spec.generate else 0)


def _told_to_stop() -> bool:
    """Whether this task was cancelled from outside: by pause() or close()."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def reason_of(fault: Exception) -> str:
    """The word under which a fault is counted."""
    return fault.reason if isinstance(fault, EngineError) else type(fault).__name__
