"""The messages of a recorded exchange."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

View = Mapping[str, Any]
NOT_PARAMETERS = ("model", "messages", "prompt", "input", "stream", "stream_options")


def messages_of(view: View) -> list[dict[str, Any]] | None:
    """The conversation as it was sent; a plain prompt is one message of the user. None where no text is recorded."""
    body = body_of(view)
    given = body.get("messages", body.get("input"))
    if isinstance(given, list) and all(isinstance(message, dict) for message in given):
        return list(given)
    text = given if isinstance(given, str) else view.get("prompt_text")
    return [{"role": "user", "content": text}] if text else None


def parameters_of(view: View) -> dict[str, Any]:
    """Everything else that the client asked for, in its own words."""
    return {name: value for name, value in body_of(view).items() if name not in NOT_PARAMETERS}


def body_of(view: View) -> dict[str, Any]:
    """The request's body; empty where it was not recorded."""
    try:
        body = json.loads(view.get("body") or "{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def content_of(message: Mapping[str, Any]) -> str:
    """A message's content as text, for people."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "" if content is None else json.dumps(content, ensure_ascii=False)
