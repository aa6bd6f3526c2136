"""Do two JSON answers say the same, whatever their order and spacing? A typed comparison path by path.

Where JSON was asked for, or either answer is a JSON object or array. Arrays are compared by position; 1 and 1.0 are
the same number, 1 and true and "1" are not the same value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from understudy.compare.base import Pair
from understudy.compare.jsontext import UNREADABLE, is_container, read_loosely
from understudy.compare.pairs import has_missing
from understudy.types import Answer

NAMES = {
    "json_similarity": "paths that have the same value on both sides, over all paths of either, 0 to 1",
    "json_match": "fraction of the answers that are the same JSON value, 0 to 1",
}
MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Change:
    """One path at which two values differ. ``kind``: only on one side, another type, or another value."""

    path: str
    kind: Literal["champion only", "challenger only", "type", "value"]
    champion: Any = None
    challenger: Any = None


def compare(pair: Pair) -> Mapping[str, float]:
    """Missing or unreadable on a side, or on both: 0."""
    if not pair.answers or not pair.can_parse:
        return {}
    similarities = [
        similarity
        for answers in pair.answers
        if (similarity := _similarity(answers, pair.asked.wants_json)) is not None
    ]
    if not similarities:
        return {}
    return {
        "json_similarity": sum(similarities) / len(similarities),
        "json_match": sum(each == 1.0 for each in similarities) / len(similarities),
    }


def _similarity(answers: tuple[Answer, Answer], wanted: bool) -> float | None:
    """None where nothing says that this is about JSON."""
    theirs, mine = (read_loosely(answer.text) for answer in answers)
    if not wanted and not is_container(theirs) and not is_container(mine):
        return None
    if has_missing(answers) or theirs is UNREADABLE or mine is UNREADABLE:
        return 0.0
    a, b = dict(leaves(theirs)), dict(leaves(mine))
    return sum(path in b and same(a[path], b[path]) for path in a) / len(a.keys() | b.keys())


def changes(champion: Any, challenger: Any) -> list[Change]:
    """Every path at which they differ, in the champion's order, then what only the challenger has."""
    a, b = dict(leaves(champion)), dict(leaves(challenger))
    found = [
        Change(path, "champion only", value)
        if path not in b
        else Change(path, "value" if _kind(value) == _kind(b[path]) else "type", value, b[path])
        for path, value in a.items()
        if path not in b or not same(value, b[path])
    ]
    return found + [Change(path, "challenger only", None, value) for path, value in b.items() if path not in a]


def leaves(value: Any, path: str = "$", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is no container, and of empty ones; below ``MAX_DEPTH`` a container is one."""
    if isinstance(value, dict) and value and depth < MAX_DEPTH:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if key.isidentifier() else f"{path}[{key!r}]", depth + 1)
    elif isinstance(value, list) and value and depth < MAX_DEPTH:
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]", depth + 1)
    else:
        yield path, value


def same(a: Any, b: Any) -> bool:
    """Equal values of one JSON type."""
    return _kind(a) == _kind(b) and bool(a == b)


def _kind(value: Any) -> str:
    """JSON's own types: Python's True would equal 1."""
    for kind, name in ((bool, "boolean"), (int | float, "number"), (str, "string"), (dict, "object"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null"
