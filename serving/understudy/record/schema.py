"""What is in the record: four kinds of event, each one JSON object on a line of its own.

Every object starts with ``crc`` (put there by log.py), ``v`` (the version of this schema, 1) and ``kind``:

    accepted   exchange_id, request_id, client_request_id, arrived_unix_s,
               challengers: those this exchange was sampled for,
               offered: {challenger: how many exchanges were offered for it so far, over all restarts},
               endpoint, tags, shadow_off, body (the request's, where it was kept), prompt_text,
               parameters: the champion's, as the caller's ``describe_parameters`` put them,
               champion: an observation
    ended      exchange_id, challenger, at_unix_s, state, reason, detail,
               observation: the challenger's, with its scores, or null
               comparison: {name: number}, or null
    feedback   id: an exchange's own id, the champion's request id or the client's; label, at_unix_s
    control    action: start, stop, pause, resume, ... or ``recording_resumed``, which the keeper writes itself
               after a gap; detail: {...}, at_unix_s, offered,
               num_lost: events that could not be recorded before this one

    observation   model, outcome, rendered, error, prompt_token_ids, timings {arrived_s, first_token_s, finished_s},
                  answers [{text, finish_reason, token_ids, logprobs}], scores [{logprobs, ranks}]

``offered`` is cumulative and travels in events that are written anyway, so that offers that were not sampled cost
nothing and the last event read has the right number. Seconds without ``unix`` are monotonic: only their
differences mean something. JSON has no infinities: a number that is not finite is the string "inf", "-inf" or "nan".
A field that is missing when read has its default, a field that is not known is skipped, another ``v`` is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import msgspec

from understudy.errors import RecordError
from understudy.types import (
    NO_TAGS,
    Answer,
    Comparison,
    Ending,
    Exchange,
    Observation,
    Outcome,
    RequestFacts,
    Score,
    State,
    Timings,
)

VERSION: Final = 1
NOTHING: Mapping[str, Any] = MappingProxyType({})
DescribeParameters = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Accepted:
    """An exchange that was sampled for ``challengers``. ``offered`` counts per challenger, over all restarts."""

    exchange: Exchange
    challengers: tuple[str, ...]
    offered: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """The one terminal state of an exchange for one challenger."""

    exchange_id: str
    challenger: str
    ending: Ending
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class Feedback:
    """A label that a user gave. ``id`` may be any of an exchange's three ids, and means every exchange with it."""

    id: str
    label: str
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class Control:
    """Something done to the shadow as a whole."""

    action: str
    at_unix_s: float
    detail: Mapping[str, Any] = NOTHING
    offered: Mapping[str, int] = field(default_factory=dict)
    num_lost: int = 0


Event = Accepted | Ended | Feedback | Control


class Head(msgspec.Struct, frozen=True, gc=False):
    """The small fields of any kind of event: enough to count and to find, without decoding the large ones."""

    kind: str
    v: int = VERSION
    exchange_id: str = ""
    request_id: str | None = None
    client_request_id: str | None = None
    challengers: tuple[str, ...] = ()
    offered: dict[str, int] = {}
    challenger: str = ""
    state: str = ""
    reason: str | None = None
    id: str = ""
    num_lost: int = 0


_ENCODER = msgspec.json.Encoder(enc_hook=repr)
_HEADS = msgspec.json.Decoder(Head)


def encode(event: Event, describe_parameters: DescribeParameters) -> bytes:
    """One event as a JSON object without line breaks, some 500 MB/s.

    A value inside ``parameters``, ``tags`` or ``detail`` that JSON does not know is written as its ``repr``.

    Raises:
        Whatever ``describe_parameters`` raises; TypeError, ValueError and others if the event cannot be written.
    """
    document = to_json(event, describe_parameters)
    try:
        return _ENCODER.encode(document)
    except UnicodeEncodeError:  # half a surrogate pair, which some client sent; only the slow encoder can escape it
        return json.dumps(document, default=repr, separators=(",", ":")).encode("ascii")


def decode(line: bytes) -> dict[str, Any]:
    """One record as it was written.

    Raises:
        RecordError: it is no JSON object of this version.
    """
    try:
        document = msgspec.json.decode(line)
    except ValueError:
        document = _slowly(line)
    if not isinstance(document, dict):
        raise RecordError("not a JSON object")
    _check(document.get("v"), document.get("kind"))
    return document


def decode_head(line: bytes) -> Head:
    """The small fields of one record, some 700 MB/s.

    Raises:
        RecordError: it is no JSON object of this version.
    """
    try:
        head = _HEADS.decode(line)
    except ValueError:
        try:
            head = msgspec.convert(_slowly(line), Head)
        except msgspec.ValidationError as error:
            raise RecordError(f"not an event: {error}") from error
    _check(head.v, head.kind)
    return head


def head_of(event: Event) -> Head:
    """What ``decode_head(encode(event))`` gives, without either."""
    match event:
        case Accepted(exchange, challengers, offered):
            return Head(
                "accepted",
                exchange_id=exchange.exchange_id,
                request_id=exchange.request_id,
                client_request_id=exchange.facts.client_request_id,
                challengers=challengers,
                offered=dict(offered),
            )
        case Ended(exchange_id, challenger, ending):
            state, reason = ending.state.value, ending.reason
            return Head("ended", exchange_id=exchange_id, challenger=challenger, state=state, reason=reason)
        case Feedback(id):
            return Head("feedback", id=id)
        case Control():
            return Head("control", offered=dict(event.offered), num_lost=event.num_lost)


def to_json(event: Event, describe_parameters: DescribeParameters) -> dict[str, Any]:
    """The document of one event, as this module's docstring lists it. Token ids are referenced, not copied."""
    match event:
        case Accepted(exchange, challengers, offered):
            return {
                "v": VERSION,
                "kind": "accepted",
                "exchange_id": exchange.exchange_id,
                "request_id": exchange.request_id,
                "client_request_id": exchange.facts.client_request_id,
                "arrived_unix_s": exchange.arrived_unix_s,
                "challengers": challengers,
                "offered": dict(offered),
                "endpoint": exchange.facts.endpoint,
                "tags": dict(exchange.facts.tags),
                "shadow_off": exchange.facts.shadow_off,
                "body": _text(exchange.facts.body),
                "prompt_text": exchange.prompt_text,
                "parameters": describe_parameters(exchange.parameters),
                "champion": _observation_to_json(exchange.champion),
            }
        case Ended(exchange_id, challenger, ending, at_unix_s):
            seen, compared = ending.challenger, ending.comparison
            return {
                "v": VERSION,
                "kind": "ended",
                "exchange_id": exchange_id,
                "challenger": challenger,
                "at_unix_s": at_unix_s,
                "state": ending.state.value,
                "reason": ending.reason,
                "detail": ending.detail,
                "observation": None if seen is None else _observation_to_json(seen),
                "comparison": None if compared is None else _named_numbers(compared.values),
            }
        case Feedback(id, label, at_unix_s):
            return {"v": VERSION, "kind": "feedback", "id": id, "label": label, "at_unix_s": at_unix_s}
        case Control(action, at_unix_s, detail, offered, num_lost):
            return {
                "v": VERSION,
                "kind": "control",
                "action": action,
                "at_unix_s": at_unix_s,
                "detail": dict(detail),
                "offered": dict(offered),
                "num_lost": num_lost,
            }


def from_json(document: Mapping[str, Any]) -> Event:
    """The event a document was made from; ``Exchange.parameters`` is the dict that described them.

    Raises:
        RecordError: a field is missing or has no meaning here.
    """
    try:
        return _EVENTS[document["kind"]](document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"not an event: {type(error).__name__}: {error}") from error


def observation_from_json(seen: Mapping[str, Any]) -> Observation:
    """An observation from ``champion`` or ``observation`` of a document."""
    timings = seen["timings"]
    answers = (
        Answer(tuple(a["token_ids"]), a["text"], a["finish_reason"], _floats_or_none(a["logprobs"]))
        for a in seen["answers"]
    )
    return Observation(
        model=seen["model"],
        outcome=Outcome(seen["outcome"]),
        prompt_token_ids=tuple(seen["prompt_token_ids"]),
        answers=tuple(answers),
        timings=Timings(timings["arrived_s"], timings["first_token_s"], timings["finished_s"]),
        scores=tuple(Score(_floats(s["logprobs"]), tuple(s["ranks"])) for s in seen["scores"]),
        error=seen["error"],
        rendered=seen["rendered"],
    )


def _accepted(document: Mapping[str, Any]) -> Accepted:
    facts = RequestFacts(
        endpoint=document.get("endpoint", ""),
        client_request_id=document.get("client_request_id"),
        tags=MappingProxyType(dict(document["tags"])) if document.get("tags") else NO_TAGS,
        shadow_off=document.get("shadow_off", False),
        body=None if document.get("body") is None else document["body"].encode("utf-8", "surrogateescape"),
    )
    exchange = Exchange(
        exchange_id=document["exchange_id"],
        request_id=document["request_id"],
        arrived_unix_s=document["arrived_unix_s"],
        facts=facts,
        parameters=document.get("parameters"),
        prompt_text=document.get("prompt_text"),
        champion=observation_from_json(document["champion"]),
    )
    return Accepted(exchange, tuple(document["challengers"]), dict(document.get("offered", {})))


def _ended(document: Mapping[str, Any]) -> Ended:
    seen, compared = document.get("observation"), document.get("comparison")
    ending = Ending(
        State(document["state"]),
        document.get("reason"),
        document.get("detail"),
        None if seen is None else observation_from_json(seen),
        None if compared is None else Comparison({name: float(value) for name, value in compared.items()}),
    )
    return Ended(document["exchange_id"], document["challenger"], ending, document["at_unix_s"])


def _feedback(document: Mapping[str, Any]) -> Feedback:
    return Feedback(document["id"], document["label"], document["at_unix_s"])


def _control(document: Mapping[str, Any]) -> Control:
    detail, offered = document.get("detail", {}), document.get("offered", {})
    return Control(
        document["action"], document["at_unix_s"], dict(detail), dict(offered), document.get("num_lost", 0)
    )


_EVENTS: Mapping[str, Callable[[Mapping[str, Any]], Event]] = {
    "accepted": _accepted,
    "ended": _ended,
    "feedback": _feedback,
    "control": _control,
}


def _observation_to_json(seen: Observation) -> dict[str, Any]:
    timings = seen.timings
    return {
        "model": seen.model,
        "outcome": seen.outcome.value,
        "rendered": seen.rendered,
        "error": seen.error,
        "prompt_token_ids": seen.prompt_token_ids,
        "timings": {
            "arrived_s": timings.arrived_s,
            "first_token_s": timings.first_token_s,
            "finished_s": timings.finished_s,
        },
        "answers": [
            {
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "token_ids": answer.token_ids,
                "logprobs": None if answer.logprobs is None else _numbers(answer.logprobs),
            }
            for answer in seen.answers
        ],
        "scores": [{"logprobs": _numbers(score.logprobs), "ranks": score.ranks} for score in seen.scores],
    }


def _numbers(values: tuple[float, ...]) -> tuple[float | str, ...]:
    # One sum tells in C whether any of them is not finite. A sum that overflows only takes the slow way in vain.
    if math.isfinite(sum(values)):
        return values
    return tuple(value if math.isfinite(value) else str(float(value)) for value in values)


def _named_numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    return dict(zip(values, _numbers(tuple(values.values())), strict=True))


def _floats(values: list[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))  # float() also reads "inf", "-inf" and "nan"


def _floats_or_none(values: list[Any] | None) -> tuple[float, ...] | None:
    return None if values is None else _floats(values)


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode("utf-8", "surrogateescape")


def _slowly(line: bytes) -> Any:
    # Half a surrogate pair, written by encode()'s slow way, is beyond msgspec.
    try:
        return json.loads(line)
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from error


def _check(version: object, kind: object) -> None:
    if version != VERSION or kind not in _EVENTS:
        raise RecordError(f"a record of version {version} and kind {kind!r}, not of version {VERSION}")
