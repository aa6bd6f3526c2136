"""An exchange as a chat: one JSON object a line, the same from `understudy export` and `understudy exchanges --export`.

    {"messages": [..., {"role": "assistant", "content": "an answer"}], "label": "...", "params": {...}, "tags": {...},
     "metadata": {"exchange_id", "request_id", "arrived_unix_s", "champion", "champion_answer",
                  "challengers": {name: {"answer", "state", "reason", "comparison"}}}}

``messages`` alone is what fine-tuning tools read: what other endpoints have beside their messages (``system``,
``instructions``) is a message too. ``label``, ``params`` and ``tags`` are left out where there are none. Half a
surrogate pair that some client sent is written as U+FFFD: a file is UTF-8 that everybody can read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from understudy.record.codec import without_surrogates
from understudy.record.labels import current_label

View = Mapping[str, Any]
_OF_AN_END = ("state", "reason", "comparison")
SYSTEM = {"messages": "system", "input": "instructions"}
"""Where /v1/messages and /v1/responses have what a chat has as its first message."""
NOT_SENT = ("model", "stream", "stream_options")
NOT_PARAMETERS = (*NOT_SENT, "messages", "prompt", "input", *SYSTEM.values())


class _Asked(msgspec.Struct):
    tools: Any = None
    functions: Any = None


_ASKED = msgspec.json.Decoder(_Asked)


def offers_tools(body: bytes) -> bool | None:
    """Whether a request offers tools; None where it cannot be read. Only a body that may is parsed, live as well."""
    if b'"tools"' not in body and b'"functions"' not in body:
        return False
    try:
        asked = _ASKED.decode(body)
    except ValueError:  # not what vLLM took it for: half a surrogate pair, another encoding
        return None
    return bool(asked.tools or asked.functions)


def messages_of(view: View) -> list[dict[str, Any]] | None:
    """The conversation as it was sent; a plain prompt is one message of the user. None where no text is recorded."""
    body = body_of(view)
    name = next((name for name in ("messages", "prompt", "input") if name in body), "")
    given, system = body.get(name), body.get(SYSTEM.get(name, ""))
    first = [{"role": "system", "content": system}] if system else []
    if isinstance(given, list) and all(isinstance(message, dict) for message in given):
        return [*first, *given]
    if isinstance(given, str) and given:
        return [*first, {"role": "user", "content": given}]
    text = view.get("prompt_text")
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


def label_of(view: View) -> str | None:
    """The right answer, as it stands."""
    given = current_label(view)
    return None if given is None else given.label


def text_of(observation: Mapping[str, Any] | None) -> str | None:
    """The first answer's text; None where there is none, or none in the record."""
    answers = (observation or {}).get("answers") or ()
    if not answers or "text_hmac" in answers[0]:
        return None
    text: str = answers[0]["text"]
    return text


def chat_of(view: View, asked: Mapping[str, Any], ends: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One line.

    Args:
        view: of the exchange.
        asked: ``messages``, or what stands for them; the whole ``body`` has its parameters in it.
        ends: by challenger, of those to tell of.
    """
    params = {} if "body" in asked else parameters_of(view)
    said = {"label": label_of(view), "params": params, "tags": dict(view.get("tags") or {})}
    challengers = {
        name: {"answer": text_of(end.get("observation"))} | {key: end.get(key) for key in _OF_AN_END}
        for name, end in ends.items()
    }
    champion = {"champion": view["champion"]["model"], "champion_answer": text_of(view["champion"])}
    ids = {name: view[name] for name in ("exchange_id", "request_id", "arrived_unix_s")}
    there = {name: value for name, value in said.items() if value}
    return {**asked, **there, "metadata": ids | champion | {"challengers": challengers}}


def line_of(chat: Mapping[str, Any]) -> str:
    """One line of a file of chats, with its end."""
    return json.dumps(without_surrogates(dict(chat)), ensure_ascii=False) + "\n"
