"""What a challenger with another tokenizer renders: the messages or the text of the request, not the ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.errors import Unsupported
from understudy.types import Exchange


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as chat templates take it."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None


def messages_of(exchange: Exchange) -> Chat | None:
    """The conversation of a chat-like request; None for a plain completion.

    Raises:
        Unsupported: the request has messages that cannot be rendered again.
    """
    if exchange.facts.endpoint.endswith("/completions") and "chat" not in exchange.facts.endpoint:
        return None
    if exchange.facts.body is None:
        return None
    body = json.loads(exchange.facts.body)
    if "messages" in body:
        return Chat(body["messages"], body.get("tools") or None)
    if "input" in body:
        return Chat(_responses_messages(body), None)
    return None


def text_of(exchange: Exchange, decode: Callable[[list[int]], str]) -> str:
    """The prompt as text, from the request where it was text, else from the champion's ids."""
    return exchange.prompt_text or decode(list(exchange.champion.prompt_token_ids))


def _responses_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages of a Responses API request, as far as they are text."""
    messages: list[dict[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    if isinstance(body["input"], str):
        return [*messages, {"role": "user", "content": body["input"]}]
    for item in body["input"]:
        content = item.get("content") if isinstance(item, dict) else None
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        if not isinstance(content, str):
            raise Unsupported("cannot_render", f"an input item of type {item.get('type')!r} cannot be rendered again")
        messages.append({"role": item.get("role", "user"), "content": content})
    return messages
