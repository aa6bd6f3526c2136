"""Feedback that came before its exchange, or for an id that never comes: kept, counted, and never dropped silently.

All of it is in the record; here are the newest, so that an exchange finds its own when it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from understudy.record.labels import is_given
from understudy.record.schema import Feedback

MAX_IDS: Final = 10_000


class Waiting:
    """By the id that was given. Not thread-safe.

    Attributes:
        num_forgotten: ids that made room for newer ones; the record has them, and the next start takes them up.
    """

    def __init__(self, max_ids: int = MAX_IDS) -> None:
        self._by_id: dict[str, list[Feedback]] = {}
        self._max_ids = max_ids
        self.num_forgotten = 0

    def add(self, given: Feedback) -> None:
        """One more."""
        self._by_id.setdefault(given.id, []).append(given)
        while len(self._by_id) > self._max_ids:
            del self._by_id[next(iter(self._by_id))]
            self.num_forgotten += 1

    def remove(self, given: Feedback) -> None:
        """It is given again, later. Nothing happens where its exchange came meanwhile."""
        if given in (known := self._by_id.get(given.id, [])):
            known.remove(given)
            if not known:
                del self._by_id[given.id]

    def has(self, given: Feedback) -> bool:
        """Whether the same waits already (labels.py)."""
        return is_given(given, self._by_id.get(given.id, ()))

    def take(self, ids: Iterable[str | None]) -> list[Feedback]:
        """What waits for an exchange with these ids, oldest first; it waits no longer."""
        found = [one for id in ids if id is not None for one in self._by_id.pop(id, ())]
        return sorted(found, key=lambda one: one.at_unix_s)

    def ids(self) -> list[str]:
        """That are waited for, oldest first."""
        return list(self._by_id)
