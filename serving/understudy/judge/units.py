"""Exchanges of one challenger, grouped into the statistical units that a gate counts.

The unit is the session where the request named one, else the exchange. Ten-request sessions counted as
independent requests gave 54-76% false GO at a 5% limit (STATISTICS.md), so a session gives one Reading, the
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

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from understudy.judge.base import Metric, Reading

HOURS_IN_RATE = 24

UnitKey: TypeAlias = tuple[str, str]
"""("session" or "exchange", its name)"""


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


class Units:
    """The units of one challenger. Memory: one Entry per exchange and one reading per gate and unit."""

    def __init__(self, metrics: Sequence[Metric], labels: Mapping[str, str], session_idle_s: float) -> None:
        self.tallies = tuple(Tally() for _ in metrics)
        self._metrics = metrics
        self._labels = labels
        self._session_idle_s = session_idle_s
        self._entries: dict[str, Entry] = {}
        self._sessions: defaultdict[str, list[str]] = defaultdict(list)
        self._counted: dict[UnitKey, tuple[int, tuple[Reading | None, ...]]] = {}
        self._open_sessions: dict[str, None] = {}
        self._interned: dict[tuple[Reading | None, ...], tuple[Reading | None, ...]] = {}

    def __contains__(self, exchange_id: str) -> bool:
        return exchange_id in self._entries

    def add(self, exchange_id: str, entry: Entry) -> None:
        """One exchange that ended, and is not in here yet."""
        self._entries[exchange_id] = entry
        if entry.session is not None:
            self._sessions[entry.session].append(exchange_id)
        self._renew(_key(exchange_id, entry))

    def relabel(self, exchange_id: str) -> None:
        """The label of this exchange is new or has changed."""
        if exchange_id in self._entries:
            self._renew(_key(exchange_id, self._entries[exchange_id]))

    def settle(self, now_unix_s: float) -> int:
        """Count every session that is complete by now; returns how many are still open."""
        for session in list(self._open_sessions):
            members = self._first_burst(session, now_unix_s)
            if members is not None:
                del self._open_sessions[session]
                self._count(("session", session), members)
        return len(self._open_sessions)

    def _first_burst(self, session: str, now_unix_s: float) -> list[str] | None:
        """The exchanges up to the first long gap, None while there is none."""
        ordered = sorted(self._sessions[session], key=lambda member: (self._entries[member].arrived_unix_s, member))
        arrivals = [self._entries[member].arrived_unix_s for member in ordered]
        for index, (here, after) in enumerate(zip(arrivals, [*arrivals[1:], now_unix_s], strict=True)):
            if after - here >= self._session_idle_s:
                return ordered[: index + 1]
        return None

    def _count(self, key: UnitKey, members: list[str]) -> None:
        readings = tuple(self._reading(gate, members) for gate in range(len(self._metrics)))
        minute = int(min(self._entries[member].arrived_unix_s for member in members) // 60)
        self._counted[key] = (minute, self._interned.setdefault(readings, readings))
        self._tally(key, +1)

    def _reading(self, gate: int, members: list[str]) -> Reading | None:
        found = []
        for member in members:
            kept = self._entries[member].kept[gate]
            reading = None if kept is None else self._metrics[gate].read(kept, self._labels.get(member))
            if reading is not None:
                found.append(reading)
        return Reading.mean(found) if found else None

    def _renew(self, key: UnitKey) -> None:
        """Take the unit back; an exchange counts again at once, a session when it is settled."""
        kind, name = key
        if key in self._counted:
            self._tally(key, -1)
            del self._counted[key]
        if kind == "session":
            self._open_sessions[name] = None
        else:
            self._count(key, [name])

    def _tally(self, key: UnitKey, change: int) -> None:
        minute, readings = self._counted[key]
        for tally, reading in zip(self.tallies, readings, strict=True):
            if reading is not None:
                tally.count(reading, minute, change)


def _key(exchange_id: str, entry: Entry) -> UnitKey:
    return ("exchange", exchange_id) if entry.session is None else ("session", entry.session)
