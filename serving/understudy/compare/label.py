"""Do both classifiers give the same label? Taken from the answer by a pattern or from its JSON by a path.

No label is a mistake, never a tie: two answers without one do not agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from understudy.compare.base import Pair
from understudy.compare.jsontext import read_loosely
from understudy.compare.options import CompareSpec, json_path
from understudy.compare.pairs import MISSING
from understudy.types import Answer

NAMES = {
    "label_match": "fraction of the answers in which both give the same label, 0 to 1; none is no label",
    "challenger_label_found": "fraction of the challenger's answers that have a label, 0 to 1",
    "champion_label_found": "the same of the champion's",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """Labels are compared without case and surrounding space."""
    if not pair.answers:
        return {}
    labels = [tuple(label_of(answer, pair.options) for answer in answers) for answers in pair.answers]
    return {
        "label_match": sum(theirs is not None and theirs == mine for theirs, mine in labels) / len(labels),
        "challenger_label_found": sum(mine is not None for _, mine in labels) / len(labels),
        "champion_label_found": sum(theirs is not None for theirs, _ in labels) / len(labels),
    }


def label_of(answer: Answer, options: CompareSpec) -> str | None:
    """The label, or None where there is none. A pattern sees the first ``max_characters``, a path needs all of it."""
    if answer is MISSING:
        return None
    if options.label_json_path is not None:
        found = _at(read_loosely(answer.text), _steps(options.label_json_path))
        return None if found is None or isinstance(found, dict | list) else _normal(str(found))
    match = re.search(options.label_pattern or "(.*)", answer.text[: options.max_characters], re.IGNORECASE)
    return _normal(match[1] or "") if match else None


def _at(value: Any, steps: tuple[str | int, ...]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


@cache
def _steps(path: str) -> tuple[str | int, ...]:
    return tuple(json_path(path))


def _normal(label: str) -> str | None:
    return label.strip().casefold() or None
