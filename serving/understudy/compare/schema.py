"""Is the answer the JSON that was asked for (``response_format``, vLLM's ``structured_outputs``), and by its schema?

The regular expressions in a client's schema are not run: one that backtracks would hold the interpreter, and with it
the champion's answers. ``pattern`` is skipped, a schema with ``patternProperties`` is not checked. References to other
documents are not fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jsonschema
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry

from understudy.compare.base import Pair
from understudy.compare.jsontext import UNREADABLE, read_strictly
from understudy.compare.pairs import MISSING
from understudy.types import Answer

NAMES = {
    "challenger_json_valid": "fraction of the challenger's answers that are JSON, where JSON was asked for, 0 to 1",
    "champion_json_valid": "the same of the champion's",
    "challenger_schema_valid": "fraction of the challenger's answers that follow the schema that was asked for, 0 to 1",
    "champion_schema_valid": "the same of the champion's",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """Where JSON was asked for. What is missing or was cut short is not valid."""
    asked = pair.asked
    if not pair.answers or not asked.wants_json or not pair.can_parse:
        return {}
    theirs, mine = zip(*pair.answers, strict=True)
    values = {"challenger_json_valid": _fraction(mine, is_json), "champion_json_valid": _fraction(theirs, is_json)}
    validator = None if asked.schema is None else validator_of(asked.schema)
    if validator is None:
        return values

    def follows(answer: Answer) -> bool:
        read = UNREADABLE if answer is MISSING else read_strictly(answer.text)
        return read is not UNREADABLE and validator.is_valid(read)

    return values | {
        "challenger_schema_valid": _fraction(mine, follows),
        "champion_schema_valid": _fraction(theirs, follows),
    }


def is_json(answer: Answer) -> bool:
    """Whether the whole answer is one JSON value."""
    return answer is not MISSING and read_strictly(answer.text) is not UNREADABLE


def validator_of(schema: Mapping[str, Any]) -> Validator | None:
    """A validator, or None for a schema that is none, or that cannot be checked here."""
    return _validator(json.dumps(schema, sort_keys=True))


@lru_cache(maxsize=64)
def _validator(schema_json: str) -> Validator | None:
    if '"patternProperties"' in schema_json:
        return None
    schema = json.loads(schema_json)
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError:
        return None
    return _without_patterns(kind)(schema, registry=Registry())


@lru_cache(maxsize=8)
def _without_patterns(kind: type[Validator]) -> Callable[..., Validator]:
    made: Callable[..., Validator] = extend(kind, {"pattern": lambda *_: iter(())})  # type: ignore[no-untyped-call]
    return made


def _fraction(answers: tuple[Answer, ...], holds: Callable[[Answer], bool]) -> float:
    return sum(holds(answer) for answer in answers) / len(answers)
