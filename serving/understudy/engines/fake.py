"""Engines without a model: a deterministic one for fast tests of logic, and the one that did not come up.

FakeEngine answers with a function of the prompt, and fails, hangs or is slow on demand. It proves logic, never
an issue: what is true of a model is shown with vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from understudy.engines.base import DeviceUse, Health, ShadowRequest
from understudy.errors import EngineDead
from understudy.types import Answer, Exchange, Observation, Score, Timings

AnswerFunction = Callable[[tuple[int, ...], tuple[tuple[int, ...], ...]], tuple[tuple[int, ...], ...]]


def echo(_prompt: tuple[int, ...], champion: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The champion's own answers: a perfect challenger."""
    return champion


@dataclass
class FakeEngine:
    """A challenger that computes nothing.

    Attributes:
        answers: what it generates, from the prompt and the champion's answers.
        fault: raised by ``score`` and ``generate`` where set.
        use: the device time that it says it and the champion have used.
        gate: where set, generation waits for it: a hang, or a step that the test releases.
    """

    name: str = "fake"
    answers: AnswerFunction = echo
    fault: Exception | None = None
    gate: asyncio.Event | None = None
    use: DeviceUse = field(default_factory=DeviceUse)
    aborted: int = field(default=0, init=False)
    generated: int = field(default=0, init=False)
    closed: bool = field(default=False, init=False)

    def health(self) -> Health:
        """Ready until closed."""
        return Health(not self.closed, "closed" if self.closed else "")

    async def prepare(self, exchange: Exchange) -> ShadowRequest:
        """Identical ids."""
        return ShadowRequest(
            model=self.name,
            prompt_token_ids=exchange.champion.prompt_token_ids,
            champion_token_ids=tuple(answer.token_ids for answer in exchange.champion.answers),
            parameters=exchange.parameters,
            rendered="token_ids",
            arrived_s=0.0,
        )

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        """Every champion token is its own first choice at probability one half."""
        self._fail_if_told()
        return tuple(Score((-0.693147,) * len(ids), (1,) * len(ids)) for ids in request.champion_token_ids)

    async def generate(self, request: ShadowRequest) -> Observation:
        """The configured answers, once the gate is open."""
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.aborted += 1
                raise
        self._fail_if_told()
        self.generated += 1
        own = self.answers(request.prompt_token_ids, request.champion_token_ids)
        answers = tuple(Answer(ids, " ".join(map(str, ids)), "stop") for ids in own)
        return request.observation(answers, Timings(0.0, 0.0, 0.0))

    async def busy_s(self) -> float:
        """It uses no device."""
        return 0.0

    def device_use(self) -> DeviceUse:
        """What the test says; nothing by itself."""
        return self.use

    async def close(self) -> None:
        """Idempotent."""
        self.closed = True

    def _fail_if_told(self) -> None:
        if self.fault is not None:
            raise self.fault


@dataclass(frozen=True)
class AbsentEngine:
    """A challenger that did not come up. Nothing reaches it: the lane sheds while it is not ready."""

    name: str
    why: str
    reason: str = "challenger_not_ready"

    def health(self) -> Health:
        """Never ready; ``why`` is what status shows, ``reason`` is what is counted."""
        return Health(False, self.why, self.reason)

    async def prepare(self, exchange: Exchange) -> ShadowRequest:
        """Not here."""
        raise EngineDead(self.why)

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        """Not here."""
        raise EngineDead(self.why)

    async def generate(self, request: ShadowRequest) -> Observation:
        """Not here."""
        raise EngineDead(self.why)

    async def busy_s(self) -> float:
        """It used none."""
        return 0.0

    def device_use(self) -> DeviceUse:
        """None."""
        return DeviceUse()

    async def close(self) -> None:
        """Nothing to give back."""
