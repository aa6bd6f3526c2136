"""What the comparators said, on average: the mean of each number over the exchanges that have it.

What they have their own rows for elsewhere (same answer, token agreement, log-probabilities, latency) is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.report.figure import DASH, Figure, percent

MAX_NAMES = 200
FRACTIONS = {
    "text_similarity": "text similarity",
    "chrf": "chrF",
    "label_match": "same label",
    "label_found": "label found",
    "json_valid": "JSON as asked",
    "schema_valid": "schema kept",
    "json_similarity": "JSON similarity",
    "json_match": "same JSON",
    "tool_decision_match": "same choice to call a tool",
    "tool_name_match": "same tools",
    "tool_call_match": "same tool calls",
    "tool_valid": "tool calls valid",
    "refused": "refused",
    "truncated": "cut off at the limit",
}
"""Titles of rows that are percentages. ``champion_X`` and ``challenger_X`` are one row, X."""
NUMBERS = {"tokens": "tokens an answer", "cost_usd": "USD an exchange"}
CUSTOM = "custom_"


@dataclass(frozen=True, slots=True)
class NumberFigure:
    """The mean of one number over ``exchanges``."""

    name: str
    exchanges: int
    mean: float


@dataclass
class NumberFigures:
    """The sums. Memory: two numbers for each name, of at most MAX_NAMES."""

    _sums: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Count one comparison."""
        for name, value in values.items():
            if name in self._sums or len(self._sums) < MAX_NAMES:
                exchanges, total = self._sums.get(name, (0, 0.0))
                self._sums[name] = (exchanges + 1, total + value)

    def figures(self) -> tuple[NumberFigure, ...]:
        """In the order in which they were first seen."""
        return tuple(
            NumberFigure(name, exchanges, total / exchanges) for name, (exchanges, total) in self._sums.items()
        )


def number_figures(figures: Sequence[NumberFigure], missing: int = 0) -> tuple[Figure, ...]:
    """A row for each that has a title here, and for the user's own; beside each how many exchanges went unanswered."""
    known = {figure.name: figure for figure in figures}
    rows = [
        _row(known, name, title, _percent if titles is FRACTIONS else _number, missing)
        for titles in (FRACTIONS, NUMBERS)
        for name, title in titles.items()
    ]
    own = [_row(known, name, name.removeprefix(CUSTOM), _number, missing) for name in known if name.startswith(CUSTOM)]
    return tuple(row for row in (*rows, *own) if row is not None)


def _percent(figure: NumberFigure) -> str:
    return percent(figure.mean)


def _number(figure: NumberFigure) -> str:
    return f"{figure.mean:.4g}"


def _row(
    known: Mapping[str, NumberFigure], name: str, title: str, show: Callable[[NumberFigure], str], missing: int
) -> Figure | None:
    champion = known.get(f"champion_{name}")
    challenger = known.get(f"challenger_{name}", known.get(name))
    if challenger is None:
        return None
    is_pair = f"challenger_{name}" in known
    theirs = show(champion) if champion is not None else DASH if is_pair else ""
    note = f"mean over {challenger.exchanges:,} exchanges" + (f"; {missing:,} unanswered" if missing else "")
    return Figure(title, theirs, show(challenger), note)
