"""JSON in answers: read strictly, or as models like to write it."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

UNREADABLE: Any = object()
"""Known by identity, and equal to nothing else: two unreadable answers do not agree."""
_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n\s*```\s*\Z", re.DOTALL)


def read_strictly(text: str) -> Any:
    """What the whole text is as JSON (RFC 8259: no NaN, no Infinity), or ``UNREADABLE``."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return UNREADABLE


def read_loosely(text: str) -> Any:
    """The same, also from inside a Markdown fence."""
    fenced = _FENCED.match(text)
    return read_strictly(fenced[1] if fenced else text)


def is_container(value: Any) -> bool:
    """An object or an array: a bare number or word is no sign that JSON was meant."""
    return isinstance(value, dict | list)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
