"""``understudy export``: what others can work with.

    chat          JSONL; one line an exchange: {"messages": [..., the champion's answer], "metadata": {...}}
    parquet       one row for each exchange and challenger: texts, states, timings, what was taken, comparison, label
    label-studio  a JSON list of tasks: prompt and two answers, in an order that a hash of the id decides, so that who
                  labels does not know which is whose; ``meta.a`` and ``meta.b`` say it

An exchange whose text is not in the record (``record.text``) cannot be exported as text: it is left out and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from understudy.errors import RecordError
from understudy.record.chat import chat_of, label_of, line_of, messages_of, text_of
from understudy.record.codec import without_surrogates
from understudy.record.store import open_private
from understudy.types import State, Taken

View = Mapping[str, Any]
TAKEN = tuple(each.name for each in fields(Taken))


@dataclass
class Exported:
    """How many were written, and how many had no text to write."""

    num_written: int = 0
    num_without_text: int = 0


def export(views: Iterable[View], form: str, target: Path, challenger: str | None = None) -> Exported:
    """Write the views in one of FORMS. Memory: one view, but for label-studio and parquet, which hold a batch or all.

    Raises:
        RecordError: the file cannot be written.
    """
    counted = Exported()
    try:
        FORMS[form](views, target, challenger, counted)
    except OSError as error:
        raise RecordError(f"{target} cannot be written: {error}") from error
    return counted


def _chat(views: Iterable[View], target: Path, challenger: str | None, counted: Exported) -> None:
    with open_private(target) as file:
        for view, messages, text in _with_text(views, counted):
            asked = {"messages": [*messages, {"role": "assistant", "content": text}]}
            file.write(line_of(chat_of(view, asked, dict(_ends(view, challenger)))))
            counted.num_written += 1


def _label_studio(views: Iterable[View], target: Path, challenger: str | None, counted: Exported) -> None:
    tasks = []
    for view, messages, text in _with_text(views, counted):
        for name, end in _ends(view, challenger):
            other = text_of(end["observation"])
            if other is None:
                continue
            pair = [("champion", text), (name, other)]
            if hashlib.sha256(f"{view['exchange_id']} {name}".encode()).digest()[0] & 1:
                pair.reverse()
            prompt = "\n\n".join(f"{one.get('role')}: {_flat(one.get('content'))}" for one in messages)
            data = {"prompt": prompt, "answer_a": pair[0][1], "answer_b": pair[1][1], **_ids(view)}
            tasks.append({"data": data, "meta": {"a": pair[0][0], "b": pair[1][0], "label": label_of(view)}})
            counted.num_written += 1
    with open_private(target) as file:
        file.write(json.dumps(without_surrogates(tasks), ensure_ascii=False, indent=1))


def _parquet(views: Iterable[View], target: Path, challenger: str | None, counted: Exported) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.string()) for name in ("exchange_id", "request_id", "session", "tags", "messages", "champion",
                                          "champion_text", "challenger", "challenger_text", "state", "reason", "label")]
        + [(name, pa.float64()) for name in ("arrived_unix_s", "champion_end_to_end_s", "challenger_end_to_end_s")]
        + [(f"{role}_{name}", pa.float64()) for role in ("champion", "challenger") for name in TAKEN]
        + [("comparison", pa.map_(pa.string(), pa.float64()))]
    )  # fmt: skip
    batch: list[dict[str, Any]] = []
    with open_private(target, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for row in (row for view in views for row in _rows(view, challenger)):
            batch.append(without_surrogates(row))
            counted.num_written += 1
            if len(batch) >= 1000:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _rows(view: View, challenger: str | None) -> Iterator[dict[str, Any]]:
    champion = view["champion"]
    shared = (
        _ids(view)
        | {
            "session": view["tags"].get("session"),
            "tags": json.dumps(view["tags"]),
            "messages": json.dumps(messages_of(view), ensure_ascii=False),
            "champion": champion["model"],
            "champion_text": text_of(champion),
            "label": label_of(view),
            "arrived_unix_s": view["arrived_unix_s"],
            "champion_end_to_end_s": _seconds(champion),
        }
        | _taken("champion", champion)
    )
    for name, end in _ends(view, challenger):
        numbers = {key: float(value) for key, value in (end["comparison"] or {}).items()}
        yield (
            shared
            | {
                "challenger": name,
                "challenger_text": text_of(end["observation"]),
                "state": end["state"],
                "reason": end["reason"],
                "challenger_end_to_end_s": None if end["observation"] is None else _seconds(end["observation"]),
                "comparison": numbers,
            }
            | _taken("challenger", end["observation"] or {})
        )


def _with_text(views: Iterable[View], counted: Exported) -> Iterator[tuple[View, list[dict[str, Any]], str]]:
    for view in views:
        messages, text = messages_of(view), text_of(view["champion"])
        if messages is None or text is None:
            counted.num_without_text += 1
        else:
            yield view, messages, text


def _ends(view: View, challenger: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, end in view["challengers"].items():
        if challenger in (None, name) and end["state"] != State.PENDING.value:
            yield name, end


def _ids(view: View) -> dict[str, Any]:
    return {"exchange_id": view["exchange_id"], "request_id": view["request_id"]}


def _seconds(seen: Mapping[str, Any]) -> float:
    return float(seen["timings"]["finished_s"] - seen["timings"]["arrived_s"])


def _taken(role: str, seen: Mapping[str, Any]) -> dict[str, float | None]:
    taken = seen.get("taken") or {}
    return {f"{role}_{name}": taken.get(name) for name in TAKEN}


def _flat(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


Form = Callable[[Iterable[View], Path, str | None, Exported], None]
FORMS: dict[str, Form] = {"chat": _chat, "parquet": _parquet, "label-studio": _label_studio}
