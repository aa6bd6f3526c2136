"""A file of prompts or chats for ``understudy compare``: one JSON object a line, checked before any engine starts.

    {"messages": [{"role": "user", "content": "Hi"}]}         a chat
    {"prompt": "Once upon a time"}                            a plain completion, without a chat template
    {"custom_id": "7", "method": "POST", "url": "/v1/chat/completions", "body": {...}}      OpenAI's batch format

and with any of them ``label`` (the right answer), ``session`` (the statistical unit), ``tags`` (text by name), ``id``
(unique; it is the client's request id in the record) and ``params`` (the rest of the request: temperature, max_tokens,
n, tools, response_format, ...). ``metadata`` is not looked at: ``understudy exchanges --export`` writes it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.api.middleware import MAX_TAGS_BYTES
from understudy.errors import ConfigError
from understudy.record.codec import without_surrogates

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
ENDPOINTS = (CHAT, COMPLETION, "/v1/responses", "/v1/messages")
KEYS = (
    "messages",
    "prompt",
    "label",
    "session",
    "tags",
    "id",
    "params",
    "metadata",
    "custom_id",
    "method",
    "url",
    "body",
)
OURS = ("model", "messages", "prompt", "stream", "stream_options")
MAX_SHOWN = 10
MAX_ID_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line, as the request that it becomes."""

    line: int
    id: str
    endpoint: str
    body: Mapping[str, Any]
    label: str | None
    tags: Mapping[str, str]


class BadLine(ValueError):
    """What is wrong with one line: the key, the value and the rule."""


def read_prompts(path: str | Path, defaults: Mapping[str, Any]) -> list[Prompt]:
    """Every line that is not empty.

    Args:
        path: of the file, in UTF-8.
        defaults: request parameters for lines that do not say otherwise.

    Raises:
        ConfigError: the file cannot be read, has no prompt, or has bad lines, of which the first ten are named.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # other line breaks may stand inside of JSON text
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read: {fault}") from fault
    prompts: list[Prompt] = []
    wrong: list[str] = []
    line_of: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            prompt = read_line(number, text, defaults)
            if prompt.id in line_of:
                raise BadLine(f"id: {prompt.id!r} must be unique; line {line_of[prompt.id]} has it too")
            line_of[prompt.id] = number
            prompts.append(prompt)
        except BadLine as fault:
            wrong.append(f"{path}:{number}: {fault}")
    if wrong:
        more = f"\n... and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
        raise ConfigError("\n".join(wrong[:MAX_SHOWN]) + more)
    if not prompts:
        raise ConfigError(f"{path}: has no prompt")
    return prompts


def read_line(number: int, text: str, defaults: Mapping[str, Any]) -> Prompt:
    """One line. Raises BadLine."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BadLine(f"is not JSON: {fault}") from fault
    if line != without_surrogates(line):
        raise BadLine("has half of a surrogate pair (\\ud800 to \\udfff), which is no text and cannot be sent")
    if not isinstance(line, dict):
        raise BadLine(f"{line!r} must be an object, with 'messages' or 'prompt'")
    for key in line:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise BadLine(
                f"{key}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KEYS)}")
            )
    endpoint, body = _batch(line) if "body" in line else _own(line)
    tags = _tags(line)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    known = line.get("id", line.get("custom_id"))
    return Prompt(
        line=number,
        id=_id(known) if known is not None else f"line-{number}-{digest}",
        endpoint=endpoint,
        body=(dict(defaults) if endpoint in (CHAT, COMPLETION) else {}) | body,
        label=None if line.get("label") is None else _text("label", line["label"]),
        tags=tags,
    )


def _own(line: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if ("messages" in line) == ("prompt" in line):
        raise BadLine("must have either 'messages' (a chat) or 'prompt' (a plain completion)")
    for key in ("custom_id", "method", "url"):
        if key in line:
            raise BadLine(f"{key}: goes with 'body' (OpenAI's batch format)")
    params = line.get("params", {})
    if not isinstance(params, dict):
        raise BadLine(f"params: {params!r} must be an object of request parameters")
    for key in OURS:
        if key in params:
            raise BadLine(f"params.{key}: is not a parameter; the command and the line itself say it")
    if "messages" in line:
        return CHAT, {"messages": _messages(line["messages"]), **params}
    return COMPLETION, {"prompt": _text("prompt", line["prompt"]), **params}


def _batch(line: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    for key in ("messages", "prompt", "params"):
        if key in line:
            raise BadLine(f"{key}: belongs into 'body' (OpenAI's batch format)")
    url, body = line.get("url", CHAT), line["body"]
    if url not in ENDPOINTS:
        raise BadLine(f"url: {url!r} must be one of {', '.join(ENDPOINTS)}")
    if not isinstance(body, dict):
        raise BadLine(f"body: {body!r} must be an object")
    if url == CHAT:
        _messages(body.get("messages"))
    return url, {key: value for key, value in body.items() if key not in ("model", "stream", "stream_options")}


def _messages(given: Any) -> Sequence[Any]:
    rule = "must be a list of objects with a 'role', at least one"
    if not isinstance(given, list) or not given:
        raise BadLine(f"messages: {given!r} {rule}")
    for index, message in enumerate(given):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadLine(f"messages[{index}]: {message!r} {rule}")
    return given


def _tags(line: Mapping[str, Any]) -> Mapping[str, str]:
    given = line.get("tags", {})
    if not isinstance(given, dict) or any(isinstance(value, dict | list) or value is None for value in given.values()):
        raise BadLine(f"tags: {given!r} must be an object of texts")
    tags = {str(name): str(value) for name, value in given.items()}
    if line.get("session") is not None:
        tags["session"] = _text("session", line["session"])
    if len(json.dumps(tags)) > MAX_TAGS_BYTES:
        raise BadLine(f"tags: with the session they must have at most {MAX_TAGS_BYTES} bytes as JSON")
    return tags


def _id(given: Any) -> str:
    """It travels in a header."""
    text = _text("id", given)
    if not text.isascii() or not text.isprintable() or len(text) > MAX_ID_CHARACTERS:
        raise BadLine(f"id: {text[:80]!r} must be at most {MAX_ID_CHARACTERS} printable ASCII characters")
    return text.strip()


def _text(key: str, value: Any) -> str:
    """Text that is not empty; a number is taken for its digits."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise BadLine(f"{key}: {value!r} must be text that is not empty")
    return str(value)
