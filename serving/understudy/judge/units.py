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

What is bounded: the newest ``max_exchanges`` can change what they say. Of older ones only what they have said is left,
as counts, which is all that the evidence needs (evidence.py): a label that comes later still changes nothing.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final, Generic, TypeAlias, TypeVar, cast

from understudy.judge.base import Metric, Reading

HOURS_IN_RATE = 24
MAX_MINUTES: Final = 4 * HOURS_IN_RATE * 60
MAX_EXCHANGES: Final = 1_000_000

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
    _first_minute: float = math.inf

    def count(self, reading: Reading, minute: int, change: int) -> None:
        """Add a unit (+1) or take it back (-1)."""
        self.readings[reading] += change
        if change > 0 or minute in self.per_minute:  # else it was thinned out
            self.per_minute[minute] += change
        if not self.readings[reading]:
            del self.readings[reading]
        if not self.per_minute.get(minute, 1):
            del self.per_minute[minute]
        if len(self.per_minute) > MAX_MINUTES:
            self._thin_out()

    def _thin_out(self) -> None:
        """Only the newest minutes are asked for, and when the first was."""
        self._first_minute = min(self._first_minute, *self.per_minute)
        for minute in sorted(self.per_minute)[: -MAX_MINUTES // 2]:
            del self.per_minute[minute]

    def units_per_hour(self, now_unix_s: float) -> float | None:
        """Over the last 24 hours, or since the first unit; None before a minute and a unit have passed."""
        now = int(now_unix_s // 60)
        window = range(now - HOURS_IN_RATE * 60, now + 1)
        first = min(self._first_minute, min(self.per_minute, default=now))
        minutes = now - max(first, window.start)
        units = sum(self.per_minute[minute] for minute in window if minute in self.per_minute)
        return units / minutes * 60 if units and minutes else None


class Distinct(Generic[Value]):
    """Each value once, by number, for as long as somebody holds it: equal values take four bytes each."""

    def __init__(self) -> None:
        self._numbers: dict[Value, int] = {}
        self._values: list[Value | None] = []
        self._num_holders = array("q")
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def hold(self, value: Value) -> int:
        """The number of a value, new or known; it has one holder more."""
        number = self._numbers.get(value)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._values[number] = value
            else:
                number = len(self._values)
                self._values.append(value)
                self._num_holders.append(0)
            self._numbers[value] = number
        self._num_holders[number] += 1
        return number

    def release(self, number: int) -> None:
        """One holder less."""
        self._num_holders[number] -= 1
        if not self._num_holders[number]:
            del self._numbers[self[number]]
            self._values[number] = None
            self._free.append(number)

    def __getitem__(self, number: int) -> Value:
        return cast("Value", self._values[number])


class Units:
    """The units of one challenger.

    Memory: 280 bytes an exchange, 410 in sessions of five, 780 where every answer differs (measured), in columns and
    without an object of its own: a process that streams answers should not have millions of objects for the garbage
    collector to walk. At most ``max_exchanges`` are here, oldest first out, and as many names of sessions that have
    counted. A session that is still going when its first exchange goes counts as it stands then; when a name comes
    again after even that was forgotten, it is a new unit.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        labels: Mapping[str, str],
        session_idle_s: float,
        max_exchanges: int = MAX_EXCHANGES,
    ) -> None:
        self.tallies = tuple(Tally() for _ in metrics)
        self._metrics = metrics
        self._labels = labels
        self._session_idle_s = session_idle_s
        self._max_exchanges = max_exchanges
        self._rows: dict[str, int] = {}  # exchange id -> its number, counted from the first one ever
        self._first = self._base = 0  # the oldest row that is known, and the one at place 0 of the columns
        self._ids: list[str] = []
        self._arrived = array("d")
        self._session = array("q")  # number, NOT_COUNTED where it has none
        self._kept = array("i")
        self._counted = array("i")  # of exchanges without a session: number of their readings
        self._kept_values: Distinct[tuple[object | None, ...]] = Distinct()
        self._readings: Distinct[Readings] = Distinct()
        self._num_sessions = 0
        self._sessions: dict[str, int] = {}
        self._members: dict[int, array[int]] = {}  # by session: rows, the first arrival's at place 0
        self._names: dict[int, str] = {}
        self._open_sessions: dict[int, float] = {}  # and before when it cannot be complete
        self._due: list[tuple[float, int]] = []  # a heap of these
        self._counted_sessions: dict[int, tuple[int, int, float]] = {}  # minute, number of its readings, last arrival
        self._closed: set[str] = set()  # names of sessions whose exchanges were forgotten
        self._closed_in_order: deque[str] = deque()

    def __contains__(self, exchange_id: str) -> bool:
        return exchange_id in self._rows

    def add(self, exchange_id: str, entry: Entry) -> str | None:
        """One exchange that ended, and is not in here yet. The id of one that is let go, if there is."""
        if entry.session in self._closed:
            return exchange_id
        row = self._rows[exchange_id] = self._base + len(self._ids)
        self._ids.append(exchange_id)
        self._arrived.append(entry.arrived_unix_s)
        self._kept.append(self._kept_values.hold(entry.kept))
        self._counted.append(NOT_COUNTED)
        if entry.session is None:
            self._session.append(NOT_COUNTED)
            self._count_alone(row)
        else:
            self._session.append(self._join(entry.session, row))
            self._extend(self._session[-1], entry.arrived_unix_s)
        return self._forget_oldest() if len(self._rows) > self._max_exchanges else None

    def relabel(self, exchange_id: str) -> None:
        """The label of this exchange is new or has changed."""
        row = self._rows.get(exchange_id)
        if row is None:
            return
        session = self._session[row - self._base]
        if session == NOT_COUNTED:
            self._count_alone(row)
        elif session in self._counted_sessions:  # else it is open, or closed
            self._take_back(session)

    def settle(self, now_unix_s: float) -> int:
        """Count every session that is complete by now; returns how many are still open."""
        while self._due and self._due[0][0] <= now_unix_s:
            due_unix_s, session = heappop(self._due)
            if self._open_sessions.get(session) != due_unix_s:
                continue  # another entry speaks for it
            burst, is_complete = self._first_burst(session, now_unix_s)
            if is_complete:
                self._count(session, burst)
            else:
                self._wait(session, self._arrived_at(burst[-1]) + self._session_idle_s)
        return len(self._open_sessions)

    def _join(self, name: str, row: int) -> int:
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = self._num_sessions
            self._num_sessions += 1
            self._names[session], self._members[session] = name, array("q")
        members = self._members[session]
        members.append(row)
        if self._arrived_at(row) < self._arrived_at(members[0]):
            members[0], members[-1] = row, members[0]
        return session

    def _wait(self, session: int, due_unix_s: float) -> None:
        self._open_sessions[session] = due_unix_s
        heappush(self._due, (due_unix_s, session))

    def _count(self, session: int, burst: list[int]) -> None:
        del self._open_sessions[session]
        minute, number = self._minute(burst), self._reading_of(burst)
        self._counted_sessions[session] = minute, number, self._arrived_at(burst[-1])
        self._tally(minute, number, +1)

    def _first_burst(self, session: int, now_unix_s: float) -> tuple[list[int], bool]:
        """The exchanges up to the first long gap, and whether that gap has passed."""
        ordered = sorted(self._members[session], key=lambda row: (self._arrived_at(row), self._ids[row - self._base]))
        arrivals = [self._arrived_at(row) for row in ordered]
        for index, (here, after) in enumerate(zip(arrivals, [*arrivals[1:], now_unix_s], strict=True)):
            if after - here >= self._session_idle_s:
                return ordered[: index + 1], True
        return ordered, False

    def _extend(self, session: int, arrived_unix_s: float) -> None:
        """A session has this exchange too. What does not change when it is complete costs no look at the others."""
        if session in self._counted_sessions:
            if arrived_unix_s - self._counted_sessions[session][2] < self._session_idle_s:
                self._take_back(session)
            return  # else it comes after the gap
        first_unix_s = self._arrived_at(self._members[session][0])
        due_unix_s = self._open_sessions.get(session, math.inf)
        within = first_unix_s < arrived_unix_s < due_unix_s  # then it is not complete any earlier
        if not within and first_unix_s + self._session_idle_s < due_unix_s:
            self._wait(session, first_unix_s + self._session_idle_s)

    def _take_back(self, session: int) -> None:
        """It counts again when it is settled."""
        minute, number, _ = self._counted_sessions.pop(session)
        self._tally(minute, number, -1)
        self._readings.release(number)
        self._wait(session, self._arrived_at(self._members[session][0]) + self._session_idle_s)

    def _count_alone(self, row: int) -> None:
        """An exchange without a session counts at once, in place of what it has counted before."""
        place = row - self._base
        minute, before = self._minute([row]), self._counted[place]
        if before != NOT_COUNTED:
            self._tally(minute, before, -1)
            self._readings.release(before)
        self._counted[place] = self._reading_of([row])
        self._tally(minute, self._counted[place], +1)

    def _forget_oldest(self) -> str:
        """What it has said stays counted."""
        place = self._first - self._base
        exchange_id, session = self._ids[place], self._session[place]
        if session == NOT_COUNTED:
            self._readings.release(self._counted[place])
        elif session in self._members:
            self._close(session)
        self._kept_values.release(self._kept[place])
        del self._rows[exchange_id]
        self._first += 1
        if place + 1 >= max(1, self._max_exchanges // 16):  # cut the columns now and then: it copies the rest
            for column in (self._ids, self._arrived, self._session, self._kept, self._counted):
                del column[: place + 1]
            self._base = self._first
        return exchange_id

    def _close(self, session: int) -> None:
        """Nothing changes any more what a session counts."""
        if session in self._open_sessions:
            self._count(session, self._first_burst(session, math.inf)[0])
        self._readings.release(self._counted_sessions.pop(session)[1])
        name = self._names.pop(session)
        del self._members[session], self._sessions[name]
        self._closed.add(name)
        self._closed_in_order.append(name)
        if len(self._closed) > self._max_exchanges:
            self._closed.discard(self._closed_in_order.popleft())

    def _arrived_at(self, row: int) -> float:
        return self._arrived[row - self._base]

    def _minute(self, rows: list[int]) -> int:
        return int(min(map(self._arrived_at, rows)) // 60)

    def _reading_of(self, rows: list[int]) -> int:
        """The number of what these exchanges say together, by gate; it is held."""
        return self._readings.hold(tuple(self._reading(gate, rows) for gate in range(len(self._metrics))))

    def _reading(self, gate: int, rows: list[int]) -> Reading | None:
        found = []
        for row in rows:
            place = row - self._base
            kept = self._kept_values[self._kept[place]][gate]
            reading = None if kept is None else self._metrics[gate].read(kept, self._labels.get(self._ids[place]))
            if reading is not None:
                found.append(reading)
        return Reading.mean(found) if found else None

    def _tally(self, minute: int, number: int, change: int) -> None:
        for tally, reading in zip(self.tallies, self._readings[number], strict=True):
            if reading is not None:
                tally.count(reading, minute, change)
