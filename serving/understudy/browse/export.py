"""Exchanges as JSONL chats: one object a line, for labelling, hardening and training.

    {"messages": [..., {"role": "assistant", "content": "the champion's answer"}],
     "label": "...", "params": {...}, "metadata": {"exchange_id": ..., "challenger_answer": ..., "comparison": ...}}

``messages`` alone is what fine-tuning tools read. Without an answer at its end (``--answer none``) the file is one that
``understudy compare --prompts`` takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from understudy.browse.conversation import body_of, messages_of, parameters_of
from understudy.browse.select import Row
from understudy.record.store import open_private

Answer = Literal["champion", "challenger", "none"]


def export(rows: Iterable[Row], path: Path, answer: Answer) -> tuple[int, int]:
    """Write the rows; returns how many were written, and how many have no text recorded and were left out."""
    written = left_out = 0
    with open_private(path) as file:
        for row in rows:
            line = as_chat(row, answer)
            if line is None:
                left_out += 1
            else:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                written += 1
    return written, left_out


def as_chat(row: Row, answer: Answer) -> dict[str, Any] | None:
    """One row, or None where the request or the wanted answer has no text. Of several answers the first."""
    messages = messages_of(row.view)
    texts = {"champion": _first(row.view["champion"]), "challenger": _first(row.end.get("observation"))}
    if messages is None or (answer != "none" and texts[answer] is None):
        return None
    said = [] if answer == "none" else [{"role": "assistant", "content": texts[answer]}]
    line: dict[str, Any] = {"messages": [*messages, *said]}
    if answer == "none" and str(row.view.get("endpoint")).endswith("/completions") and len(messages) == 1:
        line = _plain(row) or line
    if row.label is not None:
        line["label"] = row.label
    if parameters_of(row.view):
        line["params"] = parameters_of(row.view)
    if row.view.get("tags"):
        line["tags"] = dict(row.view["tags"])
    return line | {
        "metadata": {
            "exchange_id": row.view["exchange_id"],
            "request_id": row.view["request_id"],
            "arrived_unix_s": row.view["arrived_unix_s"],
            "champion": row.view["champion"]["model"],
            "challenger": row.challenger,
            "state": row.end["state"],
            "reason": row.end.get("reason"),
            "champion_answer": texts["champion"],
            "challenger_answer": texts["challenger"],
            "comparison": row.end.get("comparison"),
        }
    }


def _plain(row: Row) -> dict[str, Any] | None:
    """A plain completion goes on as one: no chat template was around it."""
    prompt = body_of(row.view).get("prompt")
    return {"prompt": prompt} if isinstance(prompt, str) else None


def _first(observation: Mapping[str, Any] | None) -> str | None:
    answers = (observation or {}).get("answers") or ()
    return answers[0]["text"] if answers and not answers[0].get("text_hmac") else None
