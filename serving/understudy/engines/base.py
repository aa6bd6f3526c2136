"""What the lane asks of a challenger, whatever runs it.

An engine answers out of sight. It may fail: every method raises EngineError (or its subclasses) with a
``reason`` that is counted, asyncio.CancelledError passes through after the work was aborted in the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from understudy.types import NOT_MEASURED, Answer, Exchange, Measured, Observation, Outcome, Score, Timings


@dataclass(frozen=True, slots=True)
class Health:
    """Whether an engine can take work, and if not, why: ``detail`` is shown in status, ``reason`` is counted."""

    ready: bool
    detail: str = ""
    reason: str = "challenger_not_ready"


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Seconds of device time so far: an engine's own, and that of all others on the same device, the champion's too."""

    own_s: float = 0.0
    others_s: float = 0.0

    def was_starved(self, before: DeviceUse, elapsed_s: float) -> bool:
        """Whether since ``before`` others had most of the device and this engine next to nothing of it."""
        return self.others_s - before.others_s > 0.5 * elapsed_s and self.own_s - before.own_s < 0.1 * elapsed_s


@dataclass(frozen=True, slots=True)
class ShadowRequest:
    """An exchange as this challenger meets it.

    Attributes:
        model: the challenger's name.
        prompt_token_ids: in the challenger's vocabulary.
        champion_token_ids: each champion answer in the challenger's vocabulary.
        parameters: the engine's own sampling parameters, a copy that may be changed.
        rendered: ``token_ids`` or ``own_template``.
        arrived_s: monotonic seconds at which the lane handed it over.
        keep: where set, ``score`` leaves what it saw under this key for other engines of the same process.
        against: where set, ``score`` also says how far this model is from what was left under this key.
    """

    model: str
    prompt_token_ids: tuple[int, ...]
    champion_token_ids: tuple[tuple[int, ...], ...]
    parameters: Any = field(repr=False)
    rendered: str
    arrived_s: float
    keep: str = ""
    against: str = ""

    def unanswered(self) -> Observation:
        """The observation of a challenger that only scored."""
        now = Timings(self.arrived_s, None, self.arrived_s)
        return Observation(self.model, Outcome.FINISHED, self.prompt_token_ids, (), now, rendered=self.rendered)

    def observation(
        self, answers: tuple[Answer, ...], timings: Timings, measured: Measured = NOT_MEASURED
    ) -> Observation:
        """The observation of a challenger that generated ``answers``."""
        return Observation(
            self.model,
            Outcome.FINISHED,
            self.prompt_token_ids,
            answers,
            timings,
            rendered=self.rendered,
            measured=measured,
        )


class Engine(Protocol):
    """One challenger."""

    @property
    def name(self) -> str:
        """As in the configuration and in status."""

    def health(self) -> Health:
        """Cheap, never raises."""

    async def prepare(self, exchange: Exchange) -> ShadowRequest:
        """The exchange as this engine will meet it.

        Raises:
            Unsupported: it cannot be shadowed here (longer than the context, token-id parameters under another
                tokenizer, ...).
        """

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        """One Score per champion answer, each from one prefill-like pass over prompt + answer."""

    async def generate(self, request: ShadowRequest) -> Observation:
        """This engine's own answer to the request, with the same parameters."""

    async def busy_s(self) -> float:
        """Seconds of device time this engine has used since it started; for the cost figures."""

    def device_use(self) -> DeviceUse:
        """Cheap, never raises."""

    async def close(self) -> None:
        """Give everything back. Idempotent."""
