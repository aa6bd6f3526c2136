"""Tool calls out of an answer's text, in the forms that common models write. Nothing is ever called.

    hermes, qwen     <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them
    llama 3          {"name": ..., "parameters": {...}}, also after <|python_tag|>, several with ; between them
    mistral          [TOOL_CALLS][{"name": ..., "arguments": {...}}], and [TOOL_CALLS]name{...} or name[ARGS]{...}
    required         [{"name": ..., "parameters": {...}}], which is what ``tool_choice: required`` makes of any model
    named            the arguments alone, where ``tool_choice`` names the tool

Where the server has a ``tool_call_parser`` it is asked first (engines/tool_calls.py), because that is what the client
saw. A challenger of another family may write another form; these are then tried.

An answer that was cut off has an unreadable call where it begins like one, or had to be one: it is not known to be
none, and two of these are no tie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from understudy.compare.asked import Asked, ToolCall
from understudy.compare.jsontext import UNREADABLE, read_strictly

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
_PYTHON_TAG = "<|python_tag|>"
_MARKS = ("<tool_call>", _MISTRAL, _PYTHON_TAG)
_BEGUN = re.compile(r'\[?\s*\{\s*(?:"([^"]*)("?)(?:\s*:\s*"([^"]*)("?))?)?')
"""The first key of a bare call and its value, each with its closing quote, as far as they were written."""
_FIRST_KEYS = ("name", "type", "arguments", "parameters")
_DECODER = json.JSONDecoder()


def calls_in(text: str, asked: Asked, *, cut: bool = False) -> Sequence[ToolCall]:
    """The calls in the order in which they were written; one that cannot be read has no arguments.

    Args:
        text: the answer's.
        asked: the tools that there are, and whether one must be called.
        cut: whether the model had more to say.
    """
    found = _found(text, asked, cut)
    must_call = asked.tool_choice == "required" or asked.tool_choice in asked.tools
    return [_unreadable()] if cut and must_call and not found else found


def _found(text: str, asked: Asked, cut: bool) -> Sequence[ToolCall]:
    if asked.tool_choice in asked.tools:
        read = read_strictly(text)
        if isinstance(read, dict) and not _is_call(read, asked):
            return [ToolCall(asked.tool_choice, read)]
    for marked in (_hermes, _mistral):
        found = list(marked(text))
        if found:
            return found
    bare = text.strip()
    found = list(_bare(bare.removeprefix(_PYTHON_TAG).strip(), asked, cut))
    if cut and not found and bare and (bare.startswith(_PYTHON_TAG) or any(mark.startswith(bare) for mark in _MARKS)):
        return [_unreadable()]
    return found


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


def _bare(text: str, asked: Asked, cut: bool) -> Iterator[ToolCall]:
    """JSON without a mark: only an object or a list of objects that name one of the tools is a call."""
    listed = read_strictly(text)
    objects, rest = (listed, "") if isinstance(listed, list) else _objects(text)
    begun = cut and _begins_like_a_call(rest, asked)
    if (objects or begun) and (begun or not rest) and all(_is_call(each, asked) for each in objects):
        yield from map(_call, objects)
        if begun:
            yield _unreadable()


def _objects(text: str) -> tuple[list[Any], str]:
    """JSON values with ``;`` or nothing between them, and the rest, from the first that is none."""
    values, position = [], 0
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        values.append(value)
        while position < len(text) and text[position] in "; \n\t\r":
            position += 1
    return values, text[position:]


def _begins_like_a_call(text: str, asked: Asked) -> bool:
    """Whether what was cut off here may have become one: JSON that names a tool first, as far as it goes."""
    match = _BEGUN.match(text)
    if match is None:
        return False
    key, key_ends, value, value_ends = match.groups()
    if not key_ends:
        return match.end() == len(text) and _may_be(key or "", False, _FIRST_KEYS)
    if key == "name" and value is not None:
        return _may_be(value, bool(value_ends), asked.tools)
    if key == "type" and value is not None:
        return _may_be(value, bool(value_ends), ("function",))
    return key in _FIRST_KEYS


def _may_be(read: str, ends: bool, words: Iterable[str]) -> bool:
    return any(word == read if ends else word.startswith(read) for word in words)


def _is_call(value: Any, asked: Asked) -> bool:
    return isinstance(value, Mapping) and value.get("name") in asked.tools and _has_arguments(value)


def _has_arguments(value: Mapping[str, Any]) -> bool:
    return "arguments" in value or "parameters" in value


def _unreadable() -> ToolCall:
    """A new one each time: it is unlike all others."""
    return ToolCall("", None)


def _call(value: Any) -> ToolCall:
    """Arguments that are JSON inside a string are read too, as OpenAI's own form has them."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return _unreadable()
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        read = read_strictly(arguments)
        arguments = None if read is UNREADABLE else read
    return ToolCall(value["name"], arguments)
