"""Events to JSON and back; schema.py says what each field is.

Token ids are referenced, not copied, the encoder is msgspec's, and logprobs are float32 in base64 (what vLLM
computes, in a quarter of the bytes): all this runs in the process that serves the champion and holds its GIL.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from struct import Struct
from types import MappingProxyType
from typing import Any

import msgspec

from understudy.errors import RecordError
from understudy.record.schema import (
    VERSION,
    VERSIONS,
    Accepted,
    Control,
    DescribeParameters,
    Ended,
    Event,
    Feedback,
    Head,
)
from understudy.types import (
    NO_TAGS,
    Answer,
    Comparison,
    Divergence,
    DraftCounts,
    Ending,
    Exchange,
    Floor,
    Measured,
    Observation,
    Outcome,
    RequestFacts,
    Score,
    State,
    Taken,
    Timings,
)

_F32 = "f32+"
_MARK = b64decode(_F32)
_ENCODER = msgspec.json.Encoder(enc_hook=repr)
_HEADS = msgspec.json.Decoder(Head)
_BEGINS = re.compile(
    rb'\{(?:"sha":"[0-9a-f]{64}","chain":"[0-9a-f]{64}",)?(?:"n":[0-9]+,)?"v":[0-9]+,"kind":"(accepted|ended)",'
)
_BEHIND_HEAD = {b"accepted": b',"endpoint":', b"ended": b',"detail":'}  # as to_json() orders them
_MAX_HEAD_BYTES = 1 << 12


def encode(event: Event, describe_parameters: DescribeParameters) -> bytes:
    """One event as a JSON object; see append_json."""
    buffer = bytearray()
    append_json(buffer, event, describe_parameters)
    return bytes(buffer)


def append_json(buffer: bytearray, event: Event, describe_parameters: DescribeParameters) -> None:
    """Append one event to ``buffer`` as a JSON object without line breaks, some 500 MB/s.

    A value inside ``parameters``, ``tags`` or ``detail`` that JSON does not know is written as its ``repr``.

    Raises:
        Whatever ``describe_parameters`` raises, and TypeError, ValueError, ... if the event makes no JSON.
    """
    append_document(buffer, to_json(event, describe_parameters))


def append_document(buffer: bytearray, document: Mapping[str, Any]) -> None:
    """The same for a document that was made already."""
    start = len(buffer)
    try:
        _ENCODER.encode_into(document, buffer, -1)
    except UnicodeEncodeError:
        # Half a surrogate pair that some client sent: only the slow encoder escapes it.
        buffer[start:] = json.dumps(document, default=_plain, separators=(",", ":")).encode("ascii")


def decode(line: bytes) -> dict[str, Any]:
    """One record as it was written, with its compact numbers as lists (of floats, "inf", "-inf" and "nan").

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
    try:
        for name in ("champion", "observation"):
            if isinstance(seen := document.get(name), dict):
                _expand(seen)
    except (TypeError, AttributeError) as error:
        raise RecordError(f"not an event: {error}") from error
    return document


def decode_head(line: bytes) -> Head:
    """The small fields of one record. Of exchanges and endings what comes behind them is not looked at.

    Raises:
        RecordError: it is no JSON object of this version.
    """
    if (begins := _BEGINS.match(line)) is not None:
        # No text has this in it: within one every quote has a backslash. An object can, and is then cut in two.
        end = line.find(_BEHIND_HEAD[begins[1]], begins.end(), _MAX_HEAD_BYTES)
        if end > 0:
            try:
                head = _HEADS.decode(line[:end] + b"}")
            except ValueError:
                pass
            else:
                _check(head.v, head.kind)
                return head
    try:
        head = _HEADS.decode(line)
    except ValueError:
        try:
            head = msgspec.convert(without_surrogates(_slowly(line)), Head)
        except msgspec.ValidationError as error:
            raise RecordError(f"not an event: {error}") from error
    _check(head.v, head.kind)
    return head


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that stands alone: JSON can say it, UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def without_surrogates(value: Any) -> Any:
    """The same for every text of what JSON gave."""
    match value:
        case str():
            return well_formed(value)
        case dict():
            return {well_formed(name): without_surrogates(each) for name, each in value.items()}
        case list():
            return [without_surrogates(each) for each in value]
        case _:
            return value


def to_json(event: Event, describe_parameters: DescribeParameters) -> dict[str, Any]:
    """The document of one event, as schema.py lists it. Token ids are referenced, not copied."""
    match event:
        case Accepted(exchange, challengers, offered):
            return {
                "v": VERSION,
                "kind": "accepted",
                "exchange_id": exchange.exchange_id,
                "request_id": exchange.request_id,
                "client_request_id": exchange.facts.client_request_id,
                "traceparent": exchange.facts.traceparent,
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
            observed = None if seen is None else _observation_to_json(seen)
            if observed is not None and event.same_prompt:
                observed["prompt_token_ids"] = None
            return {
                "v": VERSION,
                "kind": "ended",
                "exchange_id": exchange_id,
                "challenger": challenger,
                "at_unix_s": at_unix_s,
                "state": ending.state.value,
                "reason": ending.reason,
                "detail": ending.detail,
                "observation": observed,
                "comparison": None if compared is None else _named_numbers(compared.values),
                "floor": None if ending.floor is None else _floor_to_json(ending.floor),
            }
        case Feedback(id, label, at_unix_s, value, name):
            return {
                "v": VERSION,
                "kind": "feedback",
                "id": id,
                "label": label,
                "value": value,
                "name": name,
                "at_unix_s": at_unix_s,
            }
        case Control(action, at_unix_s, detail, offered, num_lost, actor):
            return {
                "v": VERSION,
                "kind": "control",
                "action": action,
                "at_unix_s": at_unix_s,
                "detail": dict(detail),
                "offered": dict(offered),
                "num_lost": num_lost,
                "actor": actor,
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
        prompt_token_ids=tuple(seen["prompt_token_ids"] or ()),
        answers=tuple(answers),
        timings=Timings(timings["arrived_s"], timings["first_token_s"], timings["finished_s"]),
        scores=tuple(map(_score, seen["scores"])),
        error=seen["error"],
        rendered=seen["rendered"],
        draft=None if seen.get("draft") is None else DraftCounts(**seen["draft"]),
        measured=_measured(seen.get("measured") or {}),
        taken=Taken(**(seen.get("taken") or {})),
        num_prompt_tokens_left_out=seen.get("num_prompt_tokens") or 0,
    )


def _measured(seen: Mapping[str, Any]) -> Measured:
    return Measured(
        queue_s=seen.get("queue_s"),
        prefill_s=seen.get("prefill_s"),
        decode_s=seen.get("decode_s"),
        cached_prompt_tokens=seen.get("cached_prompt_tokens"),
        batch_size=seen.get("batch_size"),
        busy_s=seen.get("busy_s"),
        gaps=tuple((bucket, count) for bucket, count in seen.get("gaps", ())),
    )


def _score(read: Mapping[str, Any]) -> Score:
    ranks, entropies, top1 = tuple(read["ranks"]), _floats(read.get("entropies", [])), tuple(read.get("top1", ()))
    apart = read.get("divergence")
    divergence = None if apart is None else Divergence(**{name: _floats(values) for name, values in apart.items()})
    return Score(_floats(read["logprobs"]), ranks, entropies, top1, divergence, read.get("busy_s"))


def _accepted(document: Mapping[str, Any]) -> Accepted:
    facts = RequestFacts(
        endpoint=document.get("endpoint", ""),
        client_request_id=document.get("client_request_id"),
        tags=MappingProxyType(dict(document["tags"])) if document.get("tags") else NO_TAGS,
        shadow_off=document.get("shadow_off", False),
        traceparent=document.get("traceparent"),
        body=None if document.get("body") is None else document["body"].encode("utf-8", "surrogateescape"),
        offers_tools=document.get("offers_tools"),
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
        _comparison(compared),
        _floor(document.get("floor")),
    )
    same_prompt = seen is not None and seen["prompt_token_ids"] is None
    return Ended(document["exchange_id"], document["challenger"], ending, document["at_unix_s"], same_prompt)


def _comparison(compared: Mapping[str, Any] | None) -> Comparison | None:
    return None if compared is None else Comparison({name: float(value) for name, value in compared.items()})


def _floor(floor: Mapping[str, Any] | None) -> Floor | None:
    return None if floor is None else Floor(None, _comparison(floor["comparison"]), floor["reason"])


def _feedback(document: Mapping[str, Any]) -> Feedback:
    value, name = document.get("value"), document.get("name", "")
    return Feedback(document["id"], document["label"], document["at_unix_s"], value, name)


def _control(document: Mapping[str, Any]) -> Control:
    detail, offered = document.get("detail", {}), document.get("offered", {})
    num_lost, actor = document.get("num_lost", 0), document.get("actor")
    return Control(document["action"], document["at_unix_s"], dict(detail), dict(offered), num_lost, actor)


_EVENTS: Mapping[str, Callable[[Mapping[str, Any]], Event]] = {
    "accepted": _accepted,
    "ended": _ended,
    "feedback": _feedback,
    "control": _control,
}


def _observation_to_json(seen: Observation) -> dict[str, Any]:
    timings, measured, taken = seen.timings, seen.measured, seen.taken
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
        "scores": [
            {
                "logprobs": _numbers(score.logprobs),
                "ranks": score.ranks,
                "entropies": _numbers(score.entropies),
                "top1": score.top1,
                "busy_s": score.busy_s,
            }
            | ({} if score.divergence is None else {"divergence": _divergence_to_json(score.divergence)})
            for score in seen.scores
        ],
        "measured": {
            "queue_s": measured.queue_s,
            "prefill_s": measured.prefill_s,
            "decode_s": measured.decode_s,
            "cached_prompt_tokens": measured.cached_prompt_tokens,
            "batch_size": measured.batch_size,
            "busy_s": measured.busy_s,
            "gaps": measured.gaps,
        },
        "taken": {
            "kv_peak_bytes": taken.kv_peak_bytes,
            "kv_byte_s": taken.kv_byte_s,
            "device_s": taken.device_s,
            "usd": taken.usd,
            "tokens_usd": taken.tokens_usd,
        },
        "draft": None if seen.draft is None else asdict(seen.draft),
    }


def _divergence_to_json(divergence: Divergence) -> dict[str, Any]:
    return {field.name: _numbers(getattr(divergence, field.name)) for field in fields(Divergence)}


def _floor_to_json(floor: Floor) -> dict[str, Any]:
    compared = floor.comparison
    return {"comparison": None if compared is None else _named_numbers(compared.values), "reason": floor.reason}


def _numbers(values: tuple[float, ...]) -> bytes:
    """Many numbers, compactly: little-endian float32, also where they are not finite.

    The encoder makes base64 of it, three times as fast as Python; the mark before it comes out as ``f32+``.
    """
    try:
        return _MARK + _packing(len(values)).pack(*values)
    except OverflowError:  # beyond float32
        return _MARK + array("f", values).tobytes()


@lru_cache(maxsize=4096)
def _packing(num_values: int) -> Struct:
    return Struct(f"<{num_values}f")


def _named_numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    if math.isfinite(sum(values.values())):  # in C; a sum that overflows only takes the slow way in vain
        return dict(values)
    return {name: value if math.isfinite(value) else str(float(value)) for name, value in values.items()}


def _floats(values: str | Sequence[Any]) -> tuple[float, ...]:
    if isinstance(values, str):
        return tuple(array("f", b64decode(values.removeprefix(_F32))))
    return tuple(map(float, values))  # float() also reads "inf", "-inf" and "nan"


def _floats_or_none(values: str | Sequence[Any] | None) -> tuple[float, ...] | None:
    return None if values is None else _floats(values)


def _expand(seen: dict[str, Any]) -> None:
    for one in (*(seen.get("answers") or ()), *(seen.get("scores") or ())):
        if isinstance(one.get("divergence"), dict):
            _expand_numbers(one["divergence"])
        _expand_numbers(one)


def _listed(numbers: tuple[float, ...]) -> list[float | str]:
    # One sum tells in C whether any is not finite. A sum that overflows only takes the slow way in vain.
    if math.isfinite(sum(numbers)):
        return list(numbers)
    return [number if math.isfinite(number) else str(number) for number in numbers]


def _expand_numbers(one: dict[str, Any]) -> None:
    for name, value in one.items():
        if name != "text" and isinstance(value, str) and value.startswith(_F32):
            one[name] = _listed(_floats(value))


def _plain(value: object) -> str:
    return b64encode(value).decode() if isinstance(value, bytes) else repr(value)


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode("utf-8", "surrogateescape")


def _slowly(line: bytes) -> Any:
    # Half a surrogate pair, written by encode()'s slow way, is beyond msgspec.
    try:
        return json.loads(line)
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from error


def _check(version: object, kind: object) -> None:
    if version not in VERSIONS or not isinstance(kind, str) or kind not in _EVENTS:
        raise RecordError(f"a record of version {version} and kind {kind!r}; known are {VERSIONS}")
