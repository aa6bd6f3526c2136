"""The value objects of the journey, one per stage, each complete when it is built.

    Exchange     one request with the champion's answer
    Observation  what one model did with a request
    Score        one of the champion's answers, read by the challenger
    DraftCounts  what became of the champion's answers as drafts of the challenger's own
    Comparison   champion observation beside challenger observation, as numbers
    Ending       the one terminal state of one exchange for one challenger

All are frozen. Token ids are tuples of ints in the vocabulary of the model that made them, times are
seconds, ``*_unix_s`` on the wall clock and everything else on a monotonic clock. Foreign types (vLLM's)
stop at fork.py and engines/; the one that passes through, ``Exchange.parameters``, is opaque here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

NO_TAGS: Mapping[str, str] = MappingProxyType({})


class Outcome(StrEnum):
    """How a generation ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class State(StrEnum):
    """Terminal states of one exchange for one challenger (law 4). ``PENDING`` is the only other one."""

    PENDING = "pending"
    COMPARED = "compared"
    SHED = "shed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Phase(StrEnum):
    """What the shadow as a whole is doing."""

    SHADOWING = "shadowing"
    PAUSED = "paused"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What only HTTP knows of a request. ``body`` is kept only where a challenger must re-render messages."""

    endpoint: str = ""
    client_request_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=lambda: NO_TAGS)
    shadow_off: bool = False
    body: bytes | None = None
    traceparent: str | None = None
    """The W3C trace context that the client sent (meter/traces.py)."""
    offers_tools: bool | None = None
    """Of a record that for privacy has no body. None: not known."""

    @property
    def session(self) -> str | None:
        """The statistical unit this request belongs to, from the ``session`` tag."""
        return self.tags.get("session")


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of a request. ``logprobs`` are the model's own, where they were free.

    Of one that was recorded for privacy without its text or its token ids, the last two say so.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None
    logprobs: tuple[float, ...] | None = None
    is_text_left_out: bool = False
    num_tokens_left_out: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Monotonic seconds. Queueing is inside: the challenger's end-to-end time is not the champion's load."""

    arrived_s: float
    first_token_s: float | None
    finished_s: float

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def end_to_end_s(self) -> float:
        """From arrival to the last token."""
        return self.finished_s - self.arrived_s


@dataclass(frozen=True, slots=True)
class Measured:
    """What the engine measured of one generation, beside what makes two of them comparable. None: not known.

    The times are the engine's own, in seconds: no waiting in the lane, in HTTP or in an event loop is in them.

    Attributes:
        queue_s: from the engine's queue to the first step that took it up.
        prefill_s: from there to the first token.
        decode_s: from the first token to the last.
        cached_prompt_tokens: prompt tokens that the prefix cache already had.
        batch_size: mean number of requests in the engine's steps meanwhile.
        busy_s: its share of the seconds in which the engine was stepped, each step's split evenly over the requests in
            it. No waiting is in it.
        gaps: between the outputs of a streamed answer, measured at the fork (meter/gaps.py); empty where there
            was no stream.
    """

    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    cached_prompt_tokens: int | None = None
    batch_size: float | None = None
    gaps: tuple[tuple[int, int], ...] = ()
    busy_s: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token inside the engine."""
        return None if self.queue_s is None or self.prefill_s is None else self.queue_s + self.prefill_s

    @property
    def end_to_end_s(self) -> float | None:
        """From the engine's queue to the last token."""
        return None if self.ttft_s is None or self.decode_s is None else self.ttft_s + self.decode_s


NOT_MEASURED = Measured()


@dataclass(frozen=True, slots=True)
class Taken:
    """What one exchange took of one model's device: its share, by the rules of meter/taken.py. None: not known.

    Attributes:
        kv_peak_bytes: KV cache that it held at most.
        kv_byte_s: byte-seconds of KV cache, of the model's own answers.
        device_s: device seconds, of its own answers and of scoring the champion's; each device counts.
        usd: their price by ``prices.usd_per_device_hour``. Energy is not in it: no device counts it by the request.
        tokens_usd: the price of its prompt and its answers by ``compare.token_prices``.
    """

    kv_peak_bytes: int | None = None
    kv_byte_s: float | None = None
    device_s: float | None = None
    usd: float | None = None
    tokens_usd: float | None = None


NOT_WEIGHED = Taken()


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far apart two models' whole next-token distributions are at each token of one champion answer, in nats.

    Attributes:
        kl_forward: KL(champion || challenger).
        kl_backward: KL(challenger || champion).
        hellinger: Hellinger distance, 0 to 1.
        champion_entropies: of the champion's distribution; the challenger's is in the Score.
    """

    kl_forward: tuple[float, ...]
    kl_backward: tuple[float, ...]
    hellinger: tuple[float, ...]
    champion_entropies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """One champion answer read by the challenger in one pass.

    ``logprobs[i]`` and ``ranks[i]`` belong to the champion's i-th token given everything before it;
    rank 1 means that it was the challenger's own first choice, which is ``top1[i]``. ``entropies[i]`` is that of its
    whole distribution there, in nats. Empty where they are not to be had.
    """

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]
    entropies: tuple[float, ...] = ()
    top1: tuple[int, ...] = ()
    divergence: Divergence | None = None
    """Only on the slice of ``shadow.divergence``, in the shared placement, where both models have one vocabulary."""
    busy_s: float | None = None
    """The pass's share of the seconds in which the engine was stepped, as in Measured; None: not known."""


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """What became of the champion's answers as drafts of the challenger's own, over all answers of an exchange.

    ``proposed`` tokens were verified, ``accepted`` of them were the challenger's own as well. The challenger left
    the draft ``lost`` times, and ``realigned`` times its place in the rest of it was found again.
    """

    proposed: int
    accepted: int
    lost: int
    realigned: int

    def __add__(self, other: DraftCounts) -> DraftCounts:
        """Over both."""
        return DraftCounts(
            self.proposed + other.proposed,
            self.accepted + other.accepted,
            self.lost + other.lost,
            self.realigned + other.realigned,
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """What one model did with a request: ``answers`` holds n of them, ``scores`` one per champion answer."""

    model: str
    outcome: Outcome
    prompt_token_ids: tuple[int, ...]
    answers: tuple[Answer, ...]
    timings: Timings
    scores: tuple[Score, ...] = ()
    error: str | None = None
    rendered: str = "token_ids"
    """How the prompt reached this model: ``token_ids`` (identical input) or ``own_template`` (law 3)."""
    measured: Measured = NOT_MEASURED
    taken: Taken = NOT_WEIGHED
    draft: DraftCounts | None = None
    """Where the generation was speculative; None where it was plain."""
    num_prompt_tokens_left_out: int = 0
    """Of a record that has the number of the prompt's tokens, and for privacy not their ids."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 where nothing is known of them."""
        return len(self.prompt_token_ids) or self.num_prompt_tokens_left_out

    @property
    def num_generated_tokens(self) -> int:
        """Generated tokens over all answers."""
        return sum(len(answer.token_ids) + answer.num_tokens_left_out for answer in self.answers)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first ones, over the engine's time between first and last token.

        None where the generation was speculative: with the champion's answer as its draft it says nothing of the model.
        """
        if self.draft is not None:
            return None
        num_tokens = self.num_generated_tokens - len(self.answers)
        return num_tokens / self.measured.decode_s if self.measured.decode_s and num_tokens > 0 else None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request with the champion's answer. ``parameters`` are the engine's own, as resolved."""

    exchange_id: str
    request_id: str
    arrived_unix_s: float
    facts: RequestFacts
    parameters: Any = field(repr=False)
    prompt_text: str | None
    champion: Observation


def unseen(exchange_id: str, now_unix_s: float) -> Exchange:
    """An exchange of which nothing could be kept but that it was: the record still holds how it ended."""
    champion = Observation("", Outcome.FINISHED, (), (), Timings(0.0, None, 0.0))
    return Exchange(exchange_id, "", now_unix_s, RequestFacts(), {}, None, champion)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Numbers by name, higher is better where a gate reads them. A missing name could not be computed."""

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Floor:
    """The champion met again by itself: the noise floor of one exchange, the same for all its challengers.

    Attributes:
        observation: the champion's second run, with its scores of its own first answer.
        comparison: the first run beside the second, as a challenger's would be.
        reason: why there is none, where the exchange was chosen and both are None.
    """

    observation: Observation | None = None
    comparison: Comparison | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How one exchange ended for one challenger; ``reason`` is counted for shed and failed.

    ``challenger`` of a failed one holds the scores of what was read before, where there are any, and no answers.
    ``floor`` is None for an exchange that was not chosen for ``shadow.noise_floor``.
    """

    state: State
    reason: str | None = None
    detail: str | None = None
    challenger: Observation | None = None
    comparison: Comparison | None = None
    floor: Floor | None = None
