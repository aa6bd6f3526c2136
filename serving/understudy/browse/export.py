"""Exchanges as JSONL chats: one object a line, for labelling, hardening and training.

Each line is as record/chat.py has it, with the one challenger of the row.

``messages`` alone is what fine-tuning tools read. Without an answer at its end (``--answer none``) the file is one that
``understudy compare --prompts`` takes: the same requests again. What was no chat is then in OpenAI's batch format.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from understudy.browse.select import Row
from understudy.prompts import CHAT, COMPLETION, ENDPOINTS
from understudy.record.chat import NOT_SENT, body_of, chat_of, line_of, messages_of, text_of
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
                file.write(line_of(line))
                written += 1
    return written, left_out


def as_chat(row: Row, answer: Answer) -> dict[str, Any] | None:
    """One row, or None where the request or the wanted answer has no text. Of several answers the first."""
    messages = messages_of(row.view)
    text = {"champion": row.view["champion"], "challenger": row.end.get("observation"), "none": None}[answer]
    said = text_of(text)
    if messages is None or (answer != "none" and said is None):
        return None
    asked: dict[str, Any] = {"messages": messages}
    if answer != "none":
        asked = {"messages": [*messages, {"role": "assistant", "content": said}]}
    else:
        asked = _as_sent(row) or asked
    return chat_of(row.view, asked, {row.challenger: row.end})


def _as_sent(row: Row) -> dict[str, Any] | None:
    """A plain completion goes on as one, because no chat template was around it; what is no chat goes on as it was."""
    endpoint, body = row.view.get("endpoint"), body_of(row.view)
    if endpoint == COMPLETION:
        prompt = body.get("prompt")
        return {"prompt": prompt} if isinstance(prompt, str) else None
    if endpoint in ENDPOINTS and endpoint != CHAT and body:
        return {"method": "POST", "url": endpoint, "body": {k: v for k, v in body.items() if k not in NOT_SENT}}
    return None
