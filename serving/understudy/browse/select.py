"""Which exchanges to look at: filters over the record's views, then the newest or the worst of what is left."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.compare.ranking import badness
from understudy.record.chat import label_of

View = Mapping[str, Any]
MIN_PREFIX = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One exchange for one challenger."""

    view: View
    challenger: str
    end: Mapping[str, Any]

    def number(self, name: str) -> float | None:
        """One number of its comparison; None where it could not be computed."""
        value = (self.end.get("comparison") or {}).get(name)
        return None if value is None else float(value)

    @property
    def ending(self) -> str:
        """How it ended, with the reason where one is counted."""
        return " ".join(str(each) for each in (self.end["state"], self.end.get("reason")) if each)

    @property
    def label(self) -> str | None:
        """The right answer, if any was given."""
        return label_of(self.view)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a row must be; None and empty ask for nothing."""

    challenger: str | None = None
    state: str | None = None
    reason: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None

    def rows(self, views: Iterable[View]) -> Iterator[Row]:
        """Every row of every view that is so."""
        for view in views:
            if any((view.get("tags") or {}).get(name) != value for name, value in self.tags.items()):
                continue
            for name, end in view["challengers"].items():
                row = Row(view, name, end)
                if self._takes(row):
                    yield row

    def _takes(self, row: Row) -> bool:
        pairs = ((self.challenger, row.challenger), (self.state, row.end["state"]), (self.reason, row.end["reason"]))
        if any(wanted is not None and wanted != found for wanted, found in pairs):
            return False
        return self.label is None or (row.label or "").strip().casefold() == self.label.strip().casefold()


def newest(rows: Iterable[Row], limit: int) -> list[Row]:
    """Newest first. Holds ``limit`` rows."""
    return _largest(((row.view["arrived_unix_s"], row) for row in rows), limit)


def worst(
    rows: Iterable[Row], number: str, limit: int, *, reverse: bool = False, without: Counter[str] | None = None
) -> list[Row]:
    """Worst first by that number, or best first. Holds ``limit`` rows.

    Rows that do not have it are left out, and counted in ``without`` by how they ended.
    """
    return _largest(_ranked(rows, number, -1.0 if reverse else 1.0, without), limit)


def _ranked(rows: Iterable[Row], number: str, sign: float, without: Counter[str] | None) -> Iterator[tuple[float, Row]]:
    for row in rows:
        value = row.number(number)
        if value is not None:
            yield sign * badness(number, value), row
        elif without is not None:
            without[row.ending] += 1


def _largest(ranked: Iterable[tuple[float, Row]], limit: int) -> list[Row]:
    """A tie goes to the smaller id, so that the same record always gives the same list."""

    def key(each: tuple[float, Row]) -> tuple[float, str, str]:
        return -each[0], each[1].view["exchange_id"], each[1].challenger

    return [row for _, row in heapq.nsmallest(limit, ranked, key=key)]


def is_called(view: View, wanted: str) -> bool:
    """Whether ``wanted`` is one of the exchange's three ids, or the beginning of its own."""
    if wanted in (view["exchange_id"], view["request_id"], view["client_request_id"]):
        return True
    return len(wanted) >= MIN_PREFIX and str(view["exchange_id"]).startswith(wanted)
