"""What the fast tests are built of: exchanges, a clock, a lane, a watched engine, and who hears of it all."""

from __future__ import annotations

import asyncio
import functools
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from understudy.compare import Comparators, Compare
from understudy.compare.base import Pair
from understudy.compare.options import CompareSpec
from understudy.config import Limits, ShadowSpec
from understudy.engines.base import Engine, Health, ShadowRequest
from understudy.engines.fake import FakeEngine
from understudy.lane import lane as lane_module
from understudy.lane.lane import Lane
from understudy.types import (
    Answer,
    Comparison,
    Ending,
    Exchange,
    Observation,
    Outcome,
    RequestFacts,
    Score,
    Timings,
)

TOO_LONG_S = 20.0
ON_TOKENS = Comparators(CompareSpec(use=("exact", "agreement", "likelihood")))


def in_loop(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test to its end in an event loop of its own. One that hangs fails."""

    @functools.wraps(scenario)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TOO_LONG_S):
                await scenario(*args, **kwargs)

        asyncio.run(bounded())

    return run


async def turns(count: int) -> None:
    """So many turns of the event loop: everything that can go on without time passing goes on."""
    for _ in range(count):
        await asyncio.sleep(0)


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def answer(*token_ids: int, text: str | None = None, finish_reason: str | None = "stop") -> Answer:
    return Answer(token_ids, " ".join(map(str, token_ids)) if text is None else text, finish_reason)


def observation(*answers: Answer, model: str = "champion", **fields: Any) -> Observation:
    """A finished one, with the prompt (1, 2, 3), unless ``fields`` say otherwise."""
    known: dict[str, Any] = {
        "outcome": Outcome.FINISHED,
        "prompt_token_ids": (1, 2, 3),
        "timings": Timings(0.0, 0.1, 0.2),
    }
    return Observation(model=model, answers=answers, **(known | fields))


def exchange(
    exchange_id: str = "x",
    *answers: Answer,
    facts: RequestFacts | None = None,
    prompt_text: str | None = None,
    **champion: Any,
) -> Exchange:
    """One answer of two tokens to a prompt of three, unless said otherwise."""
    return Exchange(
        exchange_id=exchange_id,
        request_id=f"request-{exchange_id}",
        arrived_unix_s=1_700_000_000.0,
        facts=facts or RequestFacts(),
        parameters=None,
        prompt_text=prompt_text,
        champion=observation(*(answers or (answer(7, 8),)), **champion),
    )


def met(
    champion: Observation, challenger: Observation, *, body: Mapping[str, Any] | None = None, **options: Any
) -> Pair:
    """What a comparator gets: both observations of one exchange, its request's body, and the ``compare`` options."""
    facts = RequestFacts(endpoint="/v1/chat/completions", body=None if body is None else json.dumps(body).encode())
    whole = replace(exchange(facts=facts), champion=champion)
    return Pair(whole, challenger, CompareSpec(**options))


@dataclass
class Offer:
    """What the fork would hand over; counts how often the lane asked for the whole exchange."""

    whole: Exchange = field(default_factory=exchange)
    shadow_off: bool = False
    unsupported: str | None = None
    fault: Exception | None = None
    completed: int = 0
    held_bytes: int = 0
    exchange_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.exchange_id = self.whole.exchange_id

    def complete(self) -> Exchange:
        self.completed += 1
        if self.fault is not None:
            raise self.fault
        return self.whole


def offers(count: int, **fields: Any) -> list[Offer]:
    return [Offer(exchange(f"x-{number}", **fields)) for number in range(count)]


@dataclass
class Ear:
    """The lane's witness: keeps what it hears, and raises ``fault`` where set."""

    fault: Exception | None = None
    accepted_ids: list[str] = field(default_factory=list)
    offered: list[Mapping[str, int]] = field(default_factory=list)
    endings: list[tuple[str, str, Ending]] = field(default_factory=list)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    def accepted(self, exchange: Exchange, challengers: Sequence[str], offered: Mapping[str, int]) -> None:
        del challengers
        self.accepted_ids.append(exchange.exchange_id)
        self.offered.append(offered)
        if self.fault is not None:
            raise self.fault

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        self.endings.append((exchange.exchange_id, challenger, ending))
        self._heard.set()
        if self.fault is not None:
            raise self.fault

    async def hears(self, count: int) -> list[Ending]:
        """Wait for so many endings over all; gives the first ``count``."""
        while len(self.endings) < count:
            self._heard.clear()
            await self._heard.wait()
        return [ending for _, _, ending in self.endings[:count]]

    def words(self) -> list[str]:
        """State and reason of each ending, in the order they came."""
        return [word(ending) for _, _, ending in self.endings]


def word(ending: Ending) -> str:
    """``compared``, ``shed paused``, ..."""
    return ending.state.value if ending.reason is None else f"{ending.state.value} {ending.reason}"


@dataclass
class WatchedEngine(FakeEngine):
    """A fake engine that writes down its calls.

    Attributes:
        faults: what each call raises, by its name; ``fault`` of FakeEngine works too.
        gates: what each call waits for, by its name.
        why_not: where set, it is not ready.
    """

    faults: dict[str, BaseException] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    why_not: str = ""
    calls: list[str] = field(default_factory=list)
    health_asked: int = 0
    now_inside: int = 0
    most_inside: int = 0
    _called: asyncio.Event = field(default_factory=asyncio.Event)

    def health(self) -> Health:
        self.health_asked += 1
        return Health(not self.why_not, self.why_not)

    async def prepare(self, exchange: Exchange) -> ShadowRequest:
        await self._enter("prepare")
        return await super().prepare(exchange)

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        await self._enter("score")
        return await super().score(request)

    async def generate(self, request: ShadowRequest) -> Observation:
        self.now_inside += 1
        self.most_inside = max(self.most_inside, self.now_inside)
        try:
            await self._enter("generate")
            return await super().generate(request)
        finally:
            self.now_inside -= 1

    async def called(self, name: str, times: int = 1) -> None:
        """Wait until the call was made so many times."""
        while self.calls.count(name) < times:
            self._called.clear()
            await self._called.wait()

    async def _enter(self, name: str) -> None:
        self.calls.append(name)
        self._called.set()
        if name in self.gates:
            try:
                await self.gates[name].wait()
            except asyncio.CancelledError:
                self.aborted += 1
                raise
        if name in self.faults:
            raise self.faults[name]


def shadow_spec(*, sample: float = 1.0, score: bool = True, generate: bool = True, **limits: Any) -> ShadowSpec:
    return ShadowSpec(sample=sample, score=score, generate=generate, limits=Limits(**limits))


@dataclass
class Stage:
    """A lane that runs, and everything around it."""

    lane: Lane
    ear: Ear
    clock: Clock

    def counts(self, challenger: str = "fake") -> dict[str, Any]:
        return self.lane.counts()[challenger]

    def check_equation(self) -> None:
        """Law 4, for each challenger."""
        for counts in self.lane.counts().values():
            assert counts["sampled"] == counts["pending"] + num_ended(counts), counts
            assert 0 <= counts["pending"] <= counts["sampled"] <= counts["offered"], counts


def num_ended(counts: Mapping[str, Any]) -> int:
    """Terminal states of one challenger's counts."""
    shed, failed = sum(counts["shed"].values()), sum(counts["failed"].values())
    return int(counts["compared"] + shed + failed + counts["expired"] + counts["cancelled"])


async def on_tokens(given: Exchange, challenger: Observation) -> Comparison:
    """Compares at once and not in a thread, so that a test can count turns of the loop."""
    return ON_TOKENS.compare(given, challenger)


@asynccontextmanager
async def running(
    *engines: Engine,
    spec: ShadowSpec | None = None,
    ear: Ear | None = None,
    champion_load: Callable[[], int] = lambda: 0,
    over_cap: Callable[[], tuple[str, str] | None] = lambda: None,
    floor: Engine | None = None,
    compare: Compare = on_tokens,
) -> AsyncIterator[Stage]:
    """A lane for the time of the block; the equation holds at its end.

    It does not wait for gaps of the event loop, so that what happens when does not follow from how busy the machine is.
    """
    clock, ear = Clock(), ear or Ear()
    lane = Lane(
        engines, spec or shadow_spec(), ear, champion_load, clock, compare=compare, over_cap=over_cap, floor=floor
    )
    stage = Stage(lane, ear, clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_module, "BUSY_LAP_S", math.inf)
        lane.start()
        try:
            yield stage
            stage.check_equation()
        finally:
            await lane.close()
    stage.check_equation()
