"""Is the answer the JSON that was asked for (``response_format``, vLLM's ``structured_outputs``), and by its schema?

The schema is a client's, so checking is bounded: references that double can take 2^depth steps, and a thread cannot be
stopped. The regular expressions in it are not run: one that backtracks would hold the interpreter, and with it the
champion's answers. ``pattern`` is skipped, a schema with ``patternProperties`` is not checked. References to other
documents are not fetched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from threading import local
from typing import Any

import jsonschema
import referencing.exceptions
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry

from understudy.compare.base import Pair
from understudy.compare.jsontext import UNREADABLE, read_strictly
from understudy.compare.pairs import MISSING
from understudy.errors import UnderstudyError
from understudy.types import Answer

MAX_CHARACTERS = 100_000
"""Of a schema, as JSON."""
MAX_STEPS = 20_000
"""Keywords looked at for one value: some 0.2 s."""
MAX_CPU_S = 1.0
"""Should single steps be slow; what a schema costs otherwise does not depend on the machine."""

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
    if asked.schema is None:
        return values
    valid = {
        "challenger_schema_valid": _valid(mine, asked.schema),
        "champion_schema_valid": _valid(theirs, asked.schema),
    }
    return values if None in valid.values() else values | {name: value or 0.0 for name, value in valid.items()}


def is_json(answer: Answer) -> bool:
    """Whether the whole answer is one JSON value."""
    return answer is not MISSING and read_strictly(answer.text) is not UNREADABLE


def follows(schema: Mapping[str, Any], value: Any) -> bool | None:
    """Whether a JSON value follows the schema. None for a schema that is none, or that cannot be checked here."""
    try:
        validator = _validator(json.dumps(schema, sort_keys=True))
        return None if validator is None else _bounded(validator, value)
    except (_TooMuch, RecursionError, referencing.exceptions.Unresolvable):
        return None


def _valid(answers: tuple[Answer, ...], schema: Mapping[str, Any]) -> float | None:
    """The fraction that follows; None where one of them could not be checked."""
    read = [UNREADABLE if answer is MISSING else read_strictly(answer.text) for answer in answers]
    found = [value is not UNREADABLE and follows(schema, value) for value in read]
    return None if None in found else sum(map(bool, found)) / len(found)


@lru_cache(maxsize=64)
def _validator(schema_json: str) -> Validator | None:
    if len(schema_json) > MAX_CHARACTERS or '"patternProperties"' in schema_json:
        return None
    schema = json.loads(schema_json)
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    if not _bounded(_counting(kind)(kind.META_SCHEMA), schema):
        return None
    return _counting(kind)(schema, registry=Registry())


class _TooMuch(UnderstudyError):
    """The schema asks for more work than it is given."""


class _Budget(local):
    """What is left of the check that this thread is at."""

    steps = 0
    until_s = 0.0

    def refill(self) -> None:
        self.steps, self.until_s = MAX_STEPS, time.thread_time() + MAX_CPU_S

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0 or time.thread_time() > self.until_s:
            raise _TooMuch


_BUDGET = _Budget()


def _bounded(validator: Validator, value: Any) -> bool:
    _BUDGET.refill()
    return validator.is_valid(value)


@lru_cache(maxsize=8)
def _counting(kind: type[Validator]) -> Callable[..., Validator]:
    """A validator of that draft in which each keyword costs a step, without ``pattern``."""
    keywords = kind.VALIDATORS | {"enum": _enum, "pattern": _nothing, "uniqueItems": _unique_items}
    counting = {name: _counted(check) for name, check in keywords.items()}
    made: Callable[..., Validator] = extend(kind, counting)  # type: ignore[no-untyped-call]
    return made


Keyword = Callable[..., Any]


def _counted(check: Keyword) -> Keyword:
    def counted(validator: Validator, wanted: Any, instance: Any, schema: Any) -> Any:
        _BUDGET.spend()
        return check(validator, wanted, instance, schema)

    return counted


def _nothing(*_: Any) -> None:
    """Not checked."""


def _enum(validator: Validator, wanted: Any, instance: Any, schema: Any) -> Any:
    _BUDGET.spend(len(wanted))
    return jsonschema.Draft202012Validator.VALIDATORS["enum"](validator, wanted, instance, schema)


def _unique_items(
    _validator: Validator, wanted: Any, instance: Any, _schema: Any
) -> Iterator[jsonschema.ValidationError]:
    """In linear time; the library compares every item with every other where they cannot be sorted."""
    if wanted and isinstance(instance, list):
        items = json.loads(json.dumps(instance), parse_float=_as_number)
        if len({json.dumps(item, sort_keys=True) for item in items}) < len(items):
            yield jsonschema.ValidationError("has non-unique elements")


def _as_number(digits: str) -> float | int:
    """1.0 is 1 in JSON Schema."""
    number = float(digits)
    return int(number) if number.is_integer() else number


def _fraction(answers: tuple[Answer, ...], holds: Callable[[Answer], bool]) -> float:
    return sum(holds(answer) for answer in answers) / len(answers)
