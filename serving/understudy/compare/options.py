"""The ``compare`` section of the configuration: which comparators run, and what they need to know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from understudy.errors import ConfigError

NOTHING: Mapping[str, Any] = MappingProxyType({})
DEFAULTS = (
    "exact", "agreement", "likelihood", "text", "length", "tokens", "latency", "schema", "structure", "tools",
    "refusal",
)  # fmt: skip
"""What is cheap and needs no option."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class CompareSpec:
    """Options of the comparators.

    Attributes:
        use: which comparators; ``label`` and ``cost`` are added where their own options are set.
        max_characters: of each text that text comparisons and patterns look at; parsers read ten times as many.
        label_pattern: a regular expression whose group 1 is the label in an answer.
        label_json_path: where the label is in an answer that is JSON, such as ``$.result[0].category``.
        refusal_phrases: more phrases that mark a refusal, beside those in refusal.py.
        token_prices: USD per million tokens, ``{model name: {input: ..., output: ...}}``, for ``cost``.
        callables: your own, ``{name: "package.module:function"}``; see callables.py.

    Raises:
        ConfigError: with the key, the value and the rule.
    """

    use: tuple[str, ...] = DEFAULTS
    max_characters: int = 10_000
    label_pattern: str | None = None
    label_json_path: str | None = None
    refusal_phrases: tuple[str, ...] = ()
    token_prices: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    callables: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        for name in self.use:
            _known(name)
        if self.max_characters < 1:
            raise ConfigError(f"compare.max_characters: {self.max_characters!r} must be a whole number above 0")
        if self.label_pattern is not None:
            _pattern_with_group(self.label_pattern)
        if self.label_json_path is not None:
            json_path(self.label_json_path)
        if self.label_pattern is not None and self.label_json_path is not None:
            raise ConfigError("compare.label_json_path: give either it or compare.label_pattern, not both")
        if "label" in self.use and self.label_pattern is None and self.label_json_path is None:
            raise ConfigError("compare.use: 'label' needs compare.label_pattern or compare.label_json_path")
        if "cost" in self.use and not self.token_prices:
            raise ConfigError("compare.use: 'cost' needs compare.token_prices")
        for model, prices in self.token_prices.items():
            _prices(model, prices)
        for name, path in self.callables.items():
            _callable(name, path)

    @property
    def names(self) -> tuple[str, ...]:
        """The comparators that run, without the callables."""
        label = self.label_pattern is not None or self.label_json_path is not None
        more = [("label", label), ("cost", bool(self.token_prices))]
        return (*self.use, *(name for name, wanted in more if wanted and name not in self.use))


def json_path(path: str) -> list[str | int]:
    """The steps of a JSON path of names and indices: ``$.a.b[0]``, ``a.b[0]``, ``$["odd name"]``.

    Raises:
        ConfigError: it is none of these. Wildcards and filters are not taken: a label is one value.
    """
    steps: list[str | int] = []
    rest = path.removeprefix("$")
    step = re.compile(r"""\.?([\w-]+)|\[(\d+)\]|\[(?:"([^"]+)"|'([^']+)')\]""")
    while rest:
        match = step.match(rest)
        if match is None:
            raise ConfigError(f"compare.label_json_path: {path!r} must be names and indices, such as $.result[0].label")
        name = match[1] or match[3] or match[4]
        steps.append(int(match[2]) if name is None else name)
        rest = rest[match.end() :]
    if not steps:
        raise ConfigError(f"compare.label_json_path: {path!r} must name at least one step")
    return steps


def _known(name: str) -> None:
    from understudy.compare import COMPARATORS

    if name not in COMPARATORS:
        near = difflib.get_close_matches(name, COMPARATORS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(COMPARATORS))}"
        raise ConfigError(f"compare.use: {name!r} is no comparator; {hint}")


def _pattern_with_group(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as fault:
        raise ConfigError(f"compare.label_pattern: {pattern!r} is no regular expression: {fault}") from fault
    if groups < 1:
        raise ConfigError(f"compare.label_pattern: {pattern!r} must have a group, (...), which is the label")


def _prices(model: str, prices: Any) -> None:
    sides: Sequence[str] = ("input", "output")
    rule = "must be {input: USD, output: USD} per million tokens, 0 or more"
    if not isinstance(prices, Mapping) or set(prices) != set(sides):
        raise ConfigError(f"compare.token_prices.{model}: {prices!r} {rule}")
    for side in sides:
        if isinstance(prices[side], bool) or not isinstance(prices[side], int | float) or not 0 <= prices[side] < 1e9:
            raise ConfigError(f"compare.token_prices.{model}.{side}: {prices[side]!r} {rule}")


def _callable(name: str, path: Any) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"compare.callables.{name}: a name has small letters, digits and _, and starts with a letter")
    if not isinstance(path, str) or not _IMPORT_PATH.fullmatch(path):
        raise ConfigError(f"compare.callables.{name}: {path!r} must be an import path, package.module:function")
