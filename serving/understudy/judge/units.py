"""Exchanges of one challenger, grouped into the statistical units that a gate counts.

The unit is the session where the request named one, else the exchange. Ten-request sessions counted as
independent requests gave 54-76% false GO at a 5% limit (serving/README.md), so a session gives one Reading, the
mean of its exchanges'.

When does a session count? A value may not enter while it can still grow: whoever looks would see the same
session at several sizes, and a stop at a lucky size would be a choice made by looking. So a session counts
once it has been quiet for ``session_idle_s``, and what it counts is fixed: its exchanges up to the first gap
of that length. Later ones with the same session name are the same person and no new evidence; they open no
new unit and change nothing. A label or an ending that comes late revises the value of its unit and never adds
one. All of this is a function of the set of events and of the time now, so that replay in any order gives the
same units.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from understudy.judge.base import Metric, Reading

HOURS_IN_RATE = 24

NOT_COUNTED = -1

Readings: TypeAlias = tuple[Reading | None, ...]
"""One for each gate."""

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is left of an exchange that ended: ``kept`` has one value per gate, None where it says nothing."""

    arrived_unix_s: float
    session: str | None
    kept: tuple[object | None, ...]


@dataclass(slots=True)
class Tally:
    """The units of one gate: how often each reading occurred, and how many arrived in which minute."""

    readings: Counter[Reading] = field(default_factory=Counter)
    per_minute: Counter[int] = field(default_factory=Counter)

    def count(self, reading: Reading, minute: int, change: int) -> None:
        """Add a unit (+1) or take it back (-1)."""
        self.readings[reading] += change
        self.per_minute[minute] += change
        if not self.readings[reading]:
            del self.readings[reading]
        if not self.per_minute[minute]:
            del self.per_minute[minute]

    def units_per_hour(self, now_unix_s: float) -> float | None:
        """Over the last 24 hours, or since the first unit; None before a minute and a unit have passed."""
        now = int(now_unix_s // 60)
        window = range(now - HOURS_IN_RATE * 60, now + 1)
        first = min(self.per_minute, default=now)
        minutes = now - max(first, window.start)
        units = sum(self.per_minute[minute] for minute in window if minute in self.per_minute)
        return units / minutes * 60 if units and minutes else None


class Distinct(Generic[Value]):
    """Each value once, by number: equal values, of which there are few, take four bytes."""

    def __init__(self) -> None:
        self._numbers: dict[Value, int] = {}
        self._values: list[Value] = []

    def number(self, value: Value) -> int:
        """The number of a value, new or known."""
        known = self._numbers.setdefault(value, len(self._values))
        if known == len(self._values):
            self._values.append(value)
        return known

    def __getitem__(self, number: int) -> Value:
        return self._values[number]


class Units:
    """The units of one challenger.

    Memory: 270 bytes an exchange with its id and half of them labelled, 360 in sessions of five (measured), in columns
    and without an object of its own: a process that streams answers should not have millions of objects for the garbage
    collector to walk. It is not bounded: an exchange counts once however often it is told, and its label may come at
    any time.
    """

    def __init__(self, metrics: Sequence[Metric], labels: Mapping[str, str], session_idle_s: float) -> None:
        self.tallies = tuple(Tally() for _ in metrics)
        self._metrics = metrics
        self._labels = labels
        self._session_idle_s = session_idle_s
        self._rows: dict[str, int] = {}  # exchange id -> its place in the columns
        self._ids: list[str] = []
        self._arrived = array("d")
        self._session = array("q")  # number, NOT_COUNTED where it has none
        self._kept = array("q")
        self._counted = array("q")  # of exchanges without a session: number of their readings
        self._kept_values: Distinct[tuple[object | None, ...]] = Distinct()
        self._readings: Distinct[Readings] = Distinct()
        self._sessions: Distinct[str] = Distinct()
        self._members: list[array[int]] = []  # by session: rows
        self._open_sessions: dict[int, None] = {}
        self._counted_sessions: dict[int, tuple[int, int]] = {}  # minute, number of its readings

    def __contains__(self, exchange_id: str) -> bool:
        return exchange_id in self._rows

    def add(self, exchange_id: str, entry: Entry) -> None:
        """One exchange that ended, and is not in here yet."""
        row = self._rows[exchange_id] = len(self._ids)
        self._ids.append(exchange_id)
        self._arrived.append(entry.arrived_unix_s)
        self._kept.append(self._kept_values.number(entry.kept))
        self._counted.append(NOT_COUNTED)
        if entry.session is None:
            self._session.append(NOT_COUNTED)
        else:
            session = self._sessions.number(entry.session)
            if session == len(self._members):
                self._members.append(array("q"))
            self._session.append(session)
            self._members[session].append(row)
        self._renew(row)

    def relabel(self, exchange_id: str) -> None:
        """The label of this exchange is new or has changed."""
        row = self._rows.get(exchange_id)
        if row is not None:
            self._renew(row)

    def settle(self, now_unix_s: float) -> int:
        """Count every session that is complete by now; returns how many are still open."""
        for session in list(self._open_sessions):
            members = self._first_burst(session, now_unix_s)
            if members is not None:
                del self._open_sessions[session]
                minute, number = self._minute(members), self._reading_of(members)
                self._counted_sessions[session] = minute, number
                self._tally(minute, number, +1)
        return len(self._open_sessions)

    def _first_burst(self, session: int, now_unix_s: float) -> list[int] | None:
        """The exchanges up to the first long gap, None while there is none."""
        ordered = sorted(self._members[session], key=lambda row: (self._arrived[row], self._ids[row]))
        arrivals = [self._arrived[row] for row in ordered]
        for index, (here, after) in enumerate(zip(arrivals, [*arrivals[1:], now_unix_s], strict=True)):
            if after - here >= self._session_idle_s:
                return ordered[: index + 1]
        return None

    def _renew(self, row: int) -> None:
        """Take the unit back; an exchange counts again at once, a session when it is settled."""
        session = self._session[row]
        if session != NOT_COUNTED:
            if session in self._counted_sessions:
                self._tally(*self._counted_sessions.pop(session), -1)
            self._open_sessions[session] = None
            return
        minute = self._minute([row])
        if self._counted[row] != NOT_COUNTED:
            self._tally(minute, self._counted[row], -1)
        self._counted[row] = self._reading_of([row])
        self._tally(minute, self._counted[row], +1)

    def _minute(self, rows: list[int]) -> int:
        return int(min(self._arrived[row] for row in rows) // 60)

    def _reading_of(self, rows: list[int]) -> int:
        """The number of what these exchanges say together, by gate."""
        return self._readings.number(tuple(self._reading(gate, rows) for gate in range(len(self._metrics))))

    def _reading(self, gate: int, rows: list[int]) -> Reading | None:
        found = []
        for row in rows:
            kept = self._kept_values[self._kept[row]][gate]
            reading = None if kept is None else self._metrics[gate].read(kept, self._labels.get(self._ids[row]))
            if reading is not None:
                found.append(reading)
        return Reading.mean(found) if found else None

    def _tally(self, minute: int, number: int, change: int) -> None:
        for tally, reading in zip(self.tallies, self._readings[number], strict=True):
            if reading is not None:
                tally.count(reading, minute, change)
