"""Tool calls out of an answer's text, in the forms that common models write. Nothing is ever called.

    hermes, qwen     <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them
    llama 3          {"name": ..., "parameters": {...}}, also after <|python_tag|>, several with ; between them
    mistral          [TOOL_CALLS][{"name": ..., "arguments": {...}}], and [TOOL_CALLS]name{...} or name[ARGS]{...}
    required         [{"name": ..., "parameters": {...}}], which is what ``tool_choice: required`` makes of any model
    named            the arguments alone, where ``tool_choice`` names the tool

Where the server has a ``tool_call_parser`` it is asked first (engines/tool_calls.py), because that is what the client
saw. A challenger of another family may write another form; these are then tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from understudy.compare.asked import Asked, ToolCall
from understudy.compare.jsontext import UNREADABLE, read_strictly

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
_PYTHON_TAG = "<|python_tag|>"
_DECODER = json.JSONDecoder()


def calls_in(text: str, asked: Asked) -> Sequence[ToolCall]:
    """The calls in the order in which they were written; one that cannot be read has no arguments."""
    if asked.tool_choice in asked.tools:
        read = read_strictly(text)
        if isinstance(read, dict) and not _is_call(read, asked):
            return [ToolCall(asked.tool_choice, read)]
    for marked in (_hermes, _mistral):
        found = list(marked(text))
        if found:
            return found
    return list(_bare(text.removeprefix(_PYTHON_TAG).strip(), asked))


def _hermes(text: str) -> Iterator[ToolCall]:
    for match in _HERMES.finditer(text):
        yield _call(read_strictly(match[1]))


def _mistral(text: str) -> Iterator[ToolCall]:
    _, mark, rest = text.partition(_MISTRAL)
    if not mark:
        return
    listed = read_strictly(rest)
    if isinstance(listed, list):
        yield from map(_call, listed)
        return
    for part in rest.split(_MISTRAL):
        match = _MISTRAL_NAMED.match(part)
        read = read_strictly(part[match.end() :]) if match else UNREADABLE
        yield ToolCall(match[1] if match else "", None if read is UNREADABLE else read)


def _bare(text: str, asked: Asked) -> Iterator[ToolCall]:
    """JSON without a mark: only an object or a list of objects that name one of the tools is a call."""
    listed = read_strictly(text)
    objects = listed if isinstance(listed, list) else list(_objects(text))
    if objects and all(_is_call(each, asked) for each in objects):
        yield from map(_call, objects)


def _objects(text: str) -> Iterator[Any]:
    """JSON values with ``;`` or nothing between them; nothing at all where anything else is there."""
    values, position = [], 0
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return
        values.append(value)
        while position < len(text) and text[position] in "; \n\t\r":
            position += 1
    yield from values


def _is_call(value: Any, asked: Asked) -> bool:
    return isinstance(value, Mapping) and value.get("name") in asked.tools and _has_arguments(value)


def _has_arguments(value: Mapping[str, Any]) -> bool:
    return "arguments" in value or "parameters" in value


def _call(value: Any) -> ToolCall:
    """Arguments that are JSON inside a string are read too, as OpenAI's own form has them."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return ToolCall("", None)
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        read = read_strictly(arguments)
        arguments = None if read is UNREADABLE else read
    return ToolCall(value["name"], arguments)
