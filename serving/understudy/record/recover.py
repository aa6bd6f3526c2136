"""What a folder says about the time before: which exchanges were left unfinished, and all the counts.

The counts are rebuilt from the events alone, so that they add up across restarts: for each challenger
sampled = pending + compared + shed + failed + expired + cancelled. An ``ended`` without its ``accepted``
(lost while recording was off), or a second one, is not among them but counted in ``num_orphans``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from understudy.record.index import Index
from understudy.record.reading import Damage
from understudy.record.schema import Head
from understudy.record.sources import Source
from understudy.types import State


@dataclass(frozen=True, slots=True)
class Counts:
    """Exchanges of one challenger. ``offered`` includes those that were not sampled."""

    offered: int = 0
    sampled: int = 0
    compared: int = 0
    shed: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    expired: int = 0
    cancelled: int = 0

    @property
    def pending(self) -> int:
        """Sampled and not ended."""
        with_reason = sum(self.shed.values()) + sum(self.failed.values())
        return self.sampled - (self.compared + with_reason + self.expired + self.cancelled)

    def expire_pending(self) -> Counts:
        """These counts once the caller has recorded everything unfinished as expired."""
        return replace(self, expired=self.expired + self.pending)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An exchange that was sampled for a challenger and has no ending."""

    exchange_id: str
    challenger: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found when a folder was opened.

    Attributes:
        unfinished: in the order in which they were accepted; the caller ends them as expired ("restart").
        counts: by challenger, in which ``pending`` are the unfinished.
        num_records: events of all kinds.
        num_lost: events that could not be recorded, as later records say.
        num_orphans: endings that belong to no exchange that is waiting for one.
        num_damaged: lines that are not what was written; ``damage`` names the first hundred.
        num_cut_bytes: length of the half-written record that was cut away.
    """

    unfinished: tuple[Unfinished, ...]
    counts: Mapping[str, Counts]
    num_records: int
    num_lost: int
    num_orphans: int
    num_damaged: int
    damage: tuple[str, ...]
    num_cut_bytes: int


def replay(source: Source, index: Index, num_cut_bytes: int = 0) -> Recovery:
    """Take the counts of what is sealed, read every head of the log behind it (about 500 MB/s), and fill ``index``.

    Memory: a few hundred bytes for each unfinished exchange.

    Raises:
        RecordError: the record cannot be read.
    """
    manifest, found = source.end_of_sealed().manifest, Damage()
    ledger = Ledger() if manifest is None else Ledger.restored(manifest.ledger)
    index.is_complete = manifest is None
    for place, head in source.heads(found.report, unsealed_only=True):
        ledger.add(head)
        index.add(head, place)
    return Recovery(
        unfinished=ledger.unfinished(),
        counts=ledger.counts(),
        num_records=ledger.num_records,
        num_lost=ledger.num_lost,
        num_orphans=ledger.num_orphans,
        num_damaged=ledger.num_damaged + found.num_damaged,
        damage=tuple(found.errors),
        num_cut_bytes=num_cut_bytes,
    )


class Ledger:
    """Adds up heads, in the order of the log."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[str]] = {}  # exchange id: the challengers that have not ended it
        self._offered: Counter[str] = Counter()
        self._sampled: Counter[str] = Counter()
        self._ended: Counter[tuple[str, str, str]] = Counter()  # challenger, state, reason
        self.num_records = self.num_lost = self.num_orphans = self.num_damaged = 0

    def saved(self) -> dict[str, Any]:
        """For the manifest of a segment: all there is to know of it and of everything before it."""
        return {
            "waiting": list(self._waiting.items()),  # a list, because the order matters
            "offered": dict(self._offered),
            "sampled": dict(self._sampled),
            "ended": [[*key, count] for key, count in sorted(self._ended.items())],
            "num_records": self.num_records,
            "num_lost": self.num_lost,
            "num_orphans": self.num_orphans,
            "num_damaged": self.num_damaged,
        }

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Self:
        """The ledger that was saved."""
        ledger = cls()
        ledger._waiting = {id: list(names) for id, names in saved["waiting"]}
        ledger._offered, ledger._sampled = Counter(saved["offered"]), Counter(saved["sampled"])
        ledger._ended = Counter({(name, state, reason): count for name, state, reason, count in saved["ended"]})
        for name in ("num_records", "num_lost", "num_orphans", "num_damaged"):
            setattr(ledger, name, saved[name])
        return ledger

    def add(self, head: Head) -> None:
        """One more event."""
        self.num_records += 1
        self.num_lost += head.num_lost
        for name, num_offered in head.offered.items():  # cumulative: the later is the greater
            self._offered[name] = max(num_offered, self._offered[name])
        match head.kind:
            case "accepted":
                self._sampled.update(head.challengers)
                if head.challengers:
                    self._waiting[head.exchange_id] = list(head.challengers)
            case "ended":
                self._end(head)

    def unfinished(self) -> tuple[Unfinished, ...]:
        """Oldest first."""
        return tuple(Unfinished(id, name) for id, names in self._waiting.items() for name in names)

    def counts(self) -> dict[str, Counts]:
        """By challenger."""
        return {name: self._count(name) for name in sorted(self._offered | self._sampled)}

    def _end(self, head: Head) -> None:
        names = self._waiting.get(head.exchange_id, [])
        if head.challenger not in names:
            self.num_orphans += 1
            return
        names.remove(head.challenger)
        if not names:
            del self._waiting[head.exchange_id]
        reason = (head.reason or "unknown") if head.state in (State.SHED, State.FAILED) else ""
        self._ended[head.challenger, head.state, reason] += 1

    def _count(self, name: str) -> Counts:
        def by_reason(state: State) -> dict[str, int]:
            return {r: n for (c, s, r), n in self._ended.items() if c == name and s == state}

        def total(state: State) -> int:
            return sum(by_reason(state).values())

        return Counts(
            offered=self._offered[name],
            sampled=self._sampled[name],
            compared=total(State.COMPARED),
            shed=by_reason(State.SHED),
            failed=by_reason(State.FAILED),
            expired=total(State.EXPIRED),
            cancelled=total(State.CANCELLED),
        )
