"""What a request asked for beside its messages: tools, JSON, a schema. Read from the recorded body.

Knows the bodies of /v1/chat/completions, /v1/completions, /v1/responses and /v1/messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from understudy.types import Exchange


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as a model wrote it. ``arguments`` is what its JSON says, or None where it is not JSON."""

    name: str
    arguments: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer has to be.

    Attributes:
        tools: the JSON schema of the arguments, by the tool's name; an empty one takes anything.
        tool_choice: ``auto``, ``none``, ``required``, or the name of the one tool that must be called.
        wants_json: whether the answer has to be JSON.
        schema: the JSON schema it has to follow, where one was given.
        body: the whole request, for a user's own comparator.
    """

    tools: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    tool_choice: str = "auto"
    wants_json: bool = False
    schema: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None


NOTHING = Asked()


def asked_of(exchange: Exchange) -> Asked:
    """Everything is optional: a body that was not kept, or is none that is known here, asked for nothing."""
    if exchange.facts.body is None:
        return NOTHING
    try:
        body = json.loads(exchange.facts.body)
    except (ValueError, RecursionError):
        return NOTHING
    if not isinstance(body, dict):
        return NOTHING
    wants_json, schema = _format(body)
    return Asked(
        tools={name: schema for tool in _list(body.get("tools")) for name, schema in _tool(tool)},
        tool_choice=_choice(body.get("tool_choice")),
        wants_json=wants_json,
        schema=schema,
        body=body,
    )


def _tool(tool: Any) -> Sequence[tuple[str, Any]]:
    """(name, schema of the arguments) of a function tool; nothing for tools that the server runs itself."""
    if not isinstance(tool, Mapping):
        return ()
    function = tool.get("function", tool)  # chat nests it, responses and messages do not
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return ()
    schema = function.get("parameters", function.get("input_schema"))
    return ((function["name"], schema if isinstance(schema, Mapping) else {}),)


def _choice(given: Any) -> str:
    if isinstance(given, str):
        return "required" if given == "any" else given
    if isinstance(given, Mapping):
        function = given.get("function", given)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            return str(function["name"])
        if given.get("type") == "any":
            return "required"
    return "auto"


def _format(body: Mapping[str, Any]) -> tuple[bool, Mapping[str, Any] | None]:
    """Whether JSON is asked for, and its schema."""
    text = body.get("text")
    wanted = body.get("response_format") or (text.get("format") if isinstance(text, Mapping) else None)
    if isinstance(wanted, Mapping):
        if wanted.get("type") == "json_object":
            return True, None
        if wanted.get("type") == "json_schema":
            inner = wanted.get("json_schema", wanted)
            return True, _schema(inner.get("schema") if isinstance(inner, Mapping) else None)
    own = body.get("structured_outputs")  # vLLM's
    if isinstance(own, Mapping) and (own.get("json") is not None or own.get("json_object")):
        return True, _schema(own.get("json"))
    return False, None


def _schema(given: Any) -> Mapping[str, Any] | None:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return given if isinstance(given, Mapping) else None


def _list(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list) else ()
