"""Where the events of an exchange are: by its own id, the champion's request id or the client's request id.

Bounded: the oldest exchange is forgotten when a new one comes. What is forgotten is still in the log;
reading.py scans for it. Not thread-safe.

It holds texts, bytes and plain tuples of them, which the garbage collector does not walk, and no other objects: five
for each exchange made every full collection stop the answers, for 60 ms with 20,000 exchanges (on a busy machine).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from struct import Struct
from typing import Final, TypeAlias

from understudy.record.lines import Place
from understudy.record.schema import Head

MAX_EXCHANGES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Places:
    """The lines of one exchange, in the order of the log."""

    accepted: Place
    ended: tuple[Place, ...]
    feedback: tuple[Place, ...]


PLACE: Final = Struct("<qq")
Packed: TypeAlias = bytearray
"""Places one after the other, each as its segment and its offset."""


class Index:
    """The newest exchanges."""

    def __init__(self, max_exchanges: int = MAX_EXCHANGES) -> None:
        self._max_exchanges = max_exchanges
        self._entries: OrderedDict[str, tuple[Packed, tuple[str, ...]]] = OrderedDict()
        """By exchange: accepted and what ended, and its other ids."""
        self._by_other_id: dict[str, str | list[str]] = {}
        """One exchange as it is, several in a list."""
        # By the id that the user gave, not by exchange: it may come before the exchange is recorded, and the
        # exchanges that carry a client's id (one for each attempt) may be recorded before and after it.
        self._feedback: OrderedDict[str, Packed] = OrderedDict()
        self.is_complete = True
        """Whether nothing was forgotten to stay bounded, so that what is not here is nowhere."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, exchange_id: str) -> bool:
        return exchange_id in self._entries

    def add(self, head: Head, place: Place) -> None:
        """Remember where an event is. An ``ended`` of an exchange that is not here is ignored."""
        match head.kind:
            case "accepted":
                self._accept(head, place)
            case "ended":
                if entry := self._entries.get(head.exchange_id):
                    entry[0].extend(PLACE.pack(*place))
            case "feedback":
                self._feedback.setdefault(head.id, bytearray()).extend(PLACE.pack(*place))
                while len(self._feedback) > self._max_exchanges:
                    self._feedback.popitem(last=False)
                    self.is_complete = False

    def find(self, id: str, max_found: int) -> list[Places]:
        """The newest exchanges with this id, newest first."""
        ids = id if id in self._entries else self._by_other_id.get(id, [])
        ids = [ids] if isinstance(ids, str) else ids
        return [self._places(exchange_id) for exchange_id in ids[: -max_found - 1 : -1]]

    def pop(self, exchange_id: str) -> Places:
        """Forget one exchange, which is here, on purpose."""
        places = self._places(exchange_id)
        self._forget(exchange_id)
        return places

    def exchange_ids(self) -> list[str]:
        """Every exchange here, oldest first."""
        return list(self._entries)

    def _accept(self, head: Head, place: Place) -> None:
        exchange_id = head.exchange_id
        if exchange_id in self._entries:
            self._forget(exchange_id)  # the same id again: the newest one counts
        others = tuple({id for id in (head.request_id, head.client_request_id) if id} - {exchange_id})
        self._entries[exchange_id] = (bytearray(PLACE.pack(*place)), others)
        for other_id in others:
            known = self._by_other_id.setdefault(other_id, exchange_id)
            if isinstance(known, list):
                known.append(exchange_id)
            elif known != exchange_id:
                self._by_other_id[other_id] = [known, exchange_id]
        while len(self._entries) > self._max_exchanges:
            self._forget(next(iter(self._entries)))
            self.is_complete = False

    def _forget(self, exchange_id: str) -> None:
        _, others = self._entries.pop(exchange_id)
        for other_id in others:
            known = self._by_other_id[other_id]
            if isinstance(known, list):
                known.remove(exchange_id)
            if known in (exchange_id, []):
                del self._by_other_id[other_id]

    def _places(self, exchange_id: str) -> Places:
        packed, others = self._entries[exchange_id]
        accepted, *ended = _unpacked(packed)
        given = (self._feedback.get(id) for id in (exchange_id, *others))
        feedback = sorted(place for each in given if each is not None for place in _unpacked(each))
        return Places(accepted, tuple(ended), tuple(feedback))


def _unpacked(places: Packed) -> list[Place]:
    return [Place(*each) for each in PLACE.iter_unpack(places)]
