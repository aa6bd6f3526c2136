"""One record as one row: the columns of a sealed segment, made from the record's JSON object and nothing else.

Since they follow from ``document``, whoever doubts a column makes the row again; the audit does. SCHEMA.md lists them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

import msgspec

from understudy.errors import RecordError
from understudy.record.codec import decode_head, without_surrogates
from understudy.record.schema import VERSIONS

DAMAGED: Final = "damaged"  # the kind of a row whose line was not what was written; kept as it was
NO_ROLLOUT: Final = "none"

# Name: Arrow type, and what it holds. Everything may be null; a record that was erased keeps the first five.
COLUMNS: Final[dict[str, tuple[str, str]]] = {
    "n": ("int64", "the record's number in its writer's chain; null for version 1"),
    "offset": ("int64", "where its line began in the log's file; unique within a segment"),
    "kind": ("string", "accepted, ended, feedback, control, or damaged: a line that was not what was written"),
    "sha": ("binary", "SHA-256 of document as it was written, 32 bytes; null for version 1"),
    "chain": ("binary", "SHA-256(the chain before || sha), 32 bytes; null for version 1"),
    "v": ("int8", "version of the record"),
    "at_unix_s": ("double", "when: arrived_unix_s of an exchange, else at_unix_s"),
    "rollout": ("string", "the rollout it belongs to, see identity"),
    "exchange_id": ("string", "of accepted and ended"),
    "request_id": ("string", "the champion's, as the client saw it"),
    "client_request_id": ("string", "the client's X-Request-Id"),
    "endpoint": ("string", "such as /v1/chat/completions"),
    "session": ("string", "the tag of that name"),
    "tags": ("map<string,string>", "all tags"),
    "challengers": ("list<string>", "those it was sampled for"),
    "offered": ("map<string,int64>", "exchanges offered so far, by challenger"),
    "challenger": ("string", "of ended"),
    "state": ("string", "of ended: compared, shed, failed, expired or cancelled"),
    "reason": ("string", "of shed and failed"),
    "id": ("string", "of feedback: any id of an exchange"),
    "label": ("string", "of feedback"),
    "value": ("double", "of feedback: a score or a business value"),
    "name": ("string", "of feedback: what value is"),
    "action": ("string", "of control"),
    "num_lost": ("int64", "of control: records that could not be written before it"),
    "actor": ("string", "of control: by whom"),
    "model": ("string", "whose observation it is: the champion's in accepted, the challenger's in ended"),
    "outcome": ("string", "finished, cancelled or failed"),
    "rendered": ("string", "token_ids or own_template"),
    "finish_reason": ("string", "of the first answer"),
    "num_answers": ("int32", "n"),
    "num_prompt_tokens": ("int32", "null in ended where the prompt was the champion's"),
    "num_generated_tokens": ("int32", "over all answers"),
    "ttft_s": ("double", "time to first token"),
    "end_to_end_s": ("double", "from arrival to the last token"),
    "kv_peak_bytes": ("int64", "KV cache that it held at most"),
    "kv_byte_s": ("double", "byte-seconds of KV cache"),
    "device_s": ("double", "its share of the device's seconds"),
    "usd": ("double", "their price"),
    "tokens_usd": ("double", "the price of its tokens"),
    "comparison": ("map<string,double>", "numbers by name"),
    "document": ("string", "the record as it was written, JSON; null where it was erased"),
}
KEPT_WHEN_ERASED: Final = ("n", "offset", "kind", "sha", "chain")

_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class _Timings(msgspec.Struct):
    arrived_s: float = 0.0
    first_token_s: float | None = None
    finished_s: float = 0.0


class _Answer(msgspec.Struct):
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    num_tokens: _Int32 | None = None  # where the ids were left out for privacy


class _Taken(msgspec.Struct):
    kv_peak_bytes: _Int64 | None = None
    kv_byte_s: float | None = None
    device_s: float | None = None
    usd: float | None = None
    tokens_usd: float | None = None


class _Seen(msgspec.Struct):
    model: str | None = None
    outcome: str | None = None
    rendered: str | None = None
    prompt_token_ids: list[int] | None = None
    num_prompt_tokens: _Int32 | None = None
    timings: _Timings = msgspec.field(default_factory=_Timings)
    answers: list[_Answer] = msgspec.field(default_factory=list)
    taken: _Taken = msgspec.field(default_factory=_Taken)


class _Record(msgspec.Struct):
    kind: Literal["accepted", "ended", "feedback", "control"]
    v: Annotated[int, msgspec.Meta(ge=min(VERSIONS), le=max(VERSIONS))]
    rollout: str | None = None
    arrived_unix_s: float | None = None
    at_unix_s: float | None = None
    exchange_id: str | None = None
    request_id: str | None = None
    client_request_id: str | None = None
    endpoint: str | None = None
    tags: dict[str, str] | None = None
    challengers: list[str] | None = None
    offered: dict[str, _Int64] | None = None
    challenger: str | None = None
    state: str | None = None
    reason: str | None = None
    id: str | None = None
    label: str | None = None
    value: float | None = None
    name: str | None = None
    action: str | None = None
    num_lost: _Int64 | None = None
    actor: str | None = None
    champion: _Seen | None = None
    observation: _Seen | None = None
    comparison: dict[str, float | str] | None = None


_DECODER = msgspec.json.Decoder(_Record)
_COPIED = (
    "kind", "v", "exchange_id", "request_id", "client_request_id", "endpoint", "tags", "challengers", "offered",
    "challenger", "state", "reason", "id", "label", "value", "name", "action", "num_lost",
    "actor",
)  # fmt: skip


def row_of(document: bytes) -> dict[str, Any]:
    """The columns that follow from a record, all but ``n``, ``offset``, ``sha`` and ``chain``.

    Raises:
        RecordError: it is no record, or has what no column can hold.
    """
    decode_head(document)  # by which readers count and find it
    try:
        try:
            record = _DECODER.decode(document)
        except ValueError:  # half a surrogate pair is beyond msgspec
            record = msgspec.convert(without_surrogates(json.loads(document)), _Record)
        return _row(record) | {"document": document.decode("utf-8")}
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not a record: {error}") from error


def row_or_damaged(document: bytes) -> dict[str, Any]:
    """The same; of what makes no columns, the row that keeps it as it is."""
    try:
        return row_of(document)
    except RecordError:
        return damaged_row(document)


def damaged_row(line: bytes) -> dict[str, Any]:
    """The row of a line that is not what was written."""
    return {"kind": DAMAGED, "rollout": NO_ROLLOUT, "document": line.decode("utf-8", "backslashreplace")}


def _row(record: _Record) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in _COPIED}
    row["rollout"] = record.rollout or NO_ROLLOUT
    row["at_unix_s"] = record.at_unix_s if record.arrived_unix_s is None else record.arrived_unix_s
    row["session"] = (record.tags or {}).get("session")
    if record.comparison is not None:
        row["comparison"] = {name: float(value) for name, value in record.comparison.items()}
    seen = record.champion or record.observation
    return row if seen is None else row | _of_observation(seen)


def _of_observation(seen: _Seen) -> dict[str, Any]:
    first = seen.timings.first_token_s
    prompt = seen.prompt_token_ids
    generated = sum(len(one.token_ids or ()) or one.num_tokens or 0 for one in seen.answers)
    if generated >= 1 << 31:
        raise ValueError(f"{generated} generated tokens")
    return {
        "model": seen.model,
        "outcome": seen.outcome,
        "rendered": seen.rendered,
        "finish_reason": seen.answers[0].finish_reason if seen.answers else None,
        "num_answers": len(seen.answers),
        "num_prompt_tokens": seen.num_prompt_tokens if not prompt and seen.num_prompt_tokens else len(prompt or ()),
        "num_generated_tokens": generated,
        "ttft_s": None if first is None else first - seen.timings.arrived_s,
        "end_to_end_s": seen.timings.finished_s - seen.timings.arrived_s,
    } | msgspec.structs.asdict(seen.taken)
