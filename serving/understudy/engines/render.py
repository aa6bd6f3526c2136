"""What a challenger with another tokenizer renders: the messages or the text of the request, not the ids.

All or nothing: a request of which only a part could be rendered again (pictures, earlier turns that the server
holds, settings of the champion's own template) is Unsupported, and shed with that reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.errors import Unsupported
from understudy.types import Exchange

TEXT_PARTS = ("text", "input_text", "output_text")
# Where each endpoint's conversation is, and what else in its body would change how it is rendered.
MESSAGES_IN = {"/v1/chat/completions": "messages", "/v1/messages": "messages", "/v1/responses": "input"}
NOT_RENDERED = {
    "/v1/chat/completions": (
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "mm_processor_kwargs",
    ),
    "/v1/messages": ("system", "tools", "thinking"),
    "/v1/responses": ("previous_response_id", "tools", "prompt"),
}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as chat templates take it."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None


def messages_of(exchange: Exchange) -> Chat | None:
    """The conversation of a chat-like request; None for a plain completion.

    Raises:
        Unsupported: the request has messages that cannot be rendered again in full.
    """
    endpoint = next((known for known in MESSAGES_IN if exchange.facts.endpoint.endswith(known)), None)
    if endpoint is None:
        return None
    if exchange.facts.body is None:
        raise Unsupported("cannot_render", f"the body of this {endpoint} request was not kept")
    body = json.loads(exchange.facts.body)
    for name in NOT_RENDERED[endpoint]:
        if body.get(name):
            raise Unsupported("cannot_render", f"{name!r} of {endpoint} cannot be rendered again")
    if body.get("add_generation_prompt") is False:
        raise Unsupported("cannot_render", "a conversation without a generation prompt cannot be rendered again")
    given = body[MESSAGES_IN[endpoint]]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else [_message(each) for each in given]
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    return Chat(messages, body.get("tools") or None)


def text_of(exchange: Exchange, decode: Callable[[list[int]], str]) -> str:
    """The prompt as text, from the request where it was text, else from the champion's ids."""
    return exchange.prompt_text or decode(list(exchange.champion.prompt_token_ids))


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    """One message with its content as text, and the arguments of its tool calls as templates take them."""
    if given.get("type") not in (None, "message"):
        raise Unsupported("cannot_render", f"an item of type {given['type']!r} cannot be rendered again")
    message = {name: value for name, value in given.items() if name not in ("type", "id", "status")}
    message.setdefault("role", "user")
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _joined(content)
    elif content is not None and not isinstance(content, str):
        raise Unsupported("cannot_render", f"content of type {type(content).__name__!r} cannot be rendered again")
    if message.get("tool_calls"):
        message["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    return message


def _tool_call(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a mapping, as vLLM gives them to templates; as text many templates would encode them twice."""
    function = dict(given.get("function") or {})
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"] or "{}")
        except ValueError as fault:
            raise Unsupported("cannot_render", "the arguments of a tool call are not JSON") from fault
    return {**given, "function": function}


def _joined(parts: Sequence[str | Mapping[str, Any]]) -> str:
    """Parts of text as vLLM joins them for templates that take text."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if part.get("type") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise Unsupported("cannot_render", f"a part of type {part.get('type')!r} cannot be rendered again")
        texts.append(part["text"])
    return "\n".join(texts)
