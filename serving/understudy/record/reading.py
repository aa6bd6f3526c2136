"""Reading the record: one exchange by any of its ids, or all of them for the report.

An exchange is shown as one dict: its ``accepted`` record without what belongs to the log, and beside it

    challengers   {name: {"state", "reason", "detail", "observation", "comparison", "floor", "ended_unix_s"}} for each
                  challenger it was sampled for, ``pending`` and nulls where it has not ended
    feedback      [{"label", "value", "name", "at_unix_s"}], oldest first

Reading needs no lock and disturbs no writer, in this process or another. Everything here blocks on files:
from asyncio call it in a thread. Records that cannot be read are skipped, counted, logged and named in
``damage``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from understudy.errors import Erased, RecordError
from understudy.record.codec import decode
from understudy.record.index import Index, Places
from understudy.record.lines import Place, damage
from understudy.record.sources import Source
from understudy.types import State

logger = logging.getLogger(__name__)

_OF_THE_LOG: Final = ("crc", "sha", "chain", "n", "v", "kind", "challengers", "offered")
MAX_FOUND: Final = 100
Given = Mapping[str, Sequence[tuple[float, int, dict[str, Any]]]]  # by id: when, a number of its own, a view


class Damage:
    """Counts, logs and remembers (the first hundred) places that cannot be read. A place counts once."""

    def __init__(self) -> None:
        self.errors: dict[str, RecordError] = {}
        self.num_damaged = 0

    def report(self, error: RecordError) -> None:
        """One more place."""
        if str(error) in self.errors:
            return
        self.num_damaged += 1
        if len(self.errors) < 100:
            self.errors[str(error)] = error
        logger.error("the record is damaged: %s", error)


class RecordReader:
    """Reads one writer's record. Thread-safe.

    With the index of a living RecordKeeper (and its lock) recent exchanges are found at once; without, by a
    scan.
    """

    def __init__(self, source: Source | Path, index: Index | None = None, lock: threading.Lock | None = None) -> None:
        self.source = source if isinstance(source, Source) else Source.at(source)
        self._index, self._lock = index, lock or threading.Lock()
        self.damage = Damage()

    def find(self, id: str) -> list[dict[str, Any]]:
        """The exchanges with this exchange id, champion's or client's request id, newest first, at most 100.

        Those in the index are found there; only if it has none and has forgotten some, the log is scanned (at
        about 500 MB/s). So of several exchanges under one client's id, those older than the index are not
        shown.

        Raises:
            RecordError: a record of such an exchange is damaged, or the folder cannot be read.
        """
        index = self._index
        if index is not None:
            with self._lock:
                found, is_complete = index.find(id, MAX_FOUND), index.is_complete
        if index is None or not (found or is_complete):
            found = self._scan_for(id)
        return [view for places in found if (view := self._view_unless_erased(places)) is not None]

    def iterate(self, given: Given | None = None) -> Iterator[dict[str, Any]]:
        """Every exchange once its last challenger has ended; at the end those that are still pending.

        Two passes: the first finds the feedback, which may be anywhere behind the exchange; the second holds
        open only exchanges that have not ended, and of them only where they are. Memory: every feedback, a
        few hundred bytes for each open exchange (as many as the lane holds), and one exchange in full.

        An exchange with a damaged record is left out, and counted in ``damage``.

        Args:
            given: feedback by id, where the first pass was made already, perhaps over other folders too.
        """
        if given is None:
            given = given_feedback([self])
        index = Index(max_exchanges=1 << 62)
        open_challengers: dict[str, set[str]] = {}
        for place, head in self.source.heads(self.damage.report):
            match head.kind:
                case "accepted":
                    index.add(head, place)
                    open_challengers[head.exchange_id] = set(head.challengers)
                case "ended" if head.exchange_id in index:
                    index.add(head, place)
                    open_challengers[head.exchange_id].discard(head.challenger)
                case _:
                    continue
            if not open_challengers[head.exchange_id]:
                del open_challengers[head.exchange_id]
                yield from self._view_or_damage(index.pop(head.exchange_id), given)
        for exchange_id in index.exchange_ids():
            yield from self._view_or_damage(index.pop(exchange_id), given)

    def feedback(self) -> Iterator[dict[str, Any]]:
        """Every feedback, oldest first; a damaged one is left out, and counted in ``damage``."""
        for place, head in self.source.heads(self.damage.report):
            if head.kind == "feedback":
                try:
                    yield self._decoded(place)
                except RecordError as error:
                    self.damage.report(error)

    def controls(self, action: str) -> Iterator[dict[str, Any]]:
        """Every control record of this action, oldest first; a damaged one is left out, and counted in ``damage``."""
        for place, _ in self.source.heads_where(("action",), {action}, self.damage.report):
            try:
                yield self._decoded(place)
            except RecordError as error:
                self.damage.report(error)

    def last_control(self, action: str, before_unix_s: float) -> dict[str, Any] | None:
        """The newest control record of this action that is older; segments are read from the newest back.

        Raises:
            RecordError: the record cannot be read.
        """
        found: tuple[int, dict[str, Any]] | None = None
        for place, _ in self.source.heads_where(("action",), {action}, self.damage.report, newest_first=True):
            if found is not None and place.segment < found[0]:
                break
            control = self._decoded(place)
            if control["at_unix_s"] < before_unix_s:
                found = place.segment, control
        return None if found is None else found[1]

    def _scan_for(self, id: str) -> list[Places]:
        """Which exchanges have the id, and then what there is about them. An id that nobody has costs one pass."""
        names, ids = ("exchange_id", "request_id", "client_request_id"), {id}
        exchange_ids: set[str] = set()
        for _, head in self.source.heads_where(names, {id}, self.damage.report):
            if head.kind == "accepted":
                exchange_ids.add(head.exchange_id)
                ids |= {one for name in names if (one := getattr(head, name))}
        found = Index(MAX_FOUND)
        if exchange_ids:
            for place, head in self.source.heads_where(("exchange_id", "id"), exchange_ids | ids, self.damage.report):
                if head.kind == "feedback" or head.exchange_id in exchange_ids:
                    found.add(head, place)
        return found.find(id, MAX_FOUND)

    def _view_or_damage(self, places: Places, given: Given) -> Iterator[dict[str, Any]]:
        try:
            view = self._view_unless_erased(places)
        except RecordError as error:
            self.damage.report(error)
            return
        if view is not None:
            ids = {view["exchange_id"], view.get("request_id"), view.get("client_request_id")}
            found = sorted(one for id in ids if id for one in given.get(id, ()))
            yield view | {"feedback": [one for _, _, one in found]}

    def _view_unless_erased(self, places: Places) -> dict[str, Any] | None:
        try:
            return self._view(places)
        except Erased:
            return None

    def _view(self, places: Places) -> dict[str, Any]:
        accepted = self._decoded(places.accepted)
        view = {name: value for name, value in accepted.items() if name not in _OF_THE_LOG}
        view["challengers"] = {name: _challenger_view({}) for name in accepted.get("challengers", ())}
        for ended in map(self._decoded, reversed(places.ended)):  # were there two, the first one counts
            seen = ended.get("observation")
            if seen is not None and seen["prompt_token_ids"] is None:
                seen["prompt_token_ids"] = accepted["champion"]["prompt_token_ids"]
            view["challengers"][ended["challenger"]] = _challenger_view(ended)
        given = map(self._decoded, places.feedback)
        view["feedback"] = list(map(_feedback_view, given))
        return view

    def _decoded(self, place: Place) -> dict[str, Any]:
        document = self.source.document(place)
        try:
            return decode(document)
        except RecordError as error:
            raise damage(self.source.log, place, error) from error


def given_feedback(readers: Iterable[RecordReader]) -> Given:
    """The feedback of all these folders, by the id it was given for."""
    given: dict[str, list[tuple[float, int, dict[str, Any]]]] = {}
    for number, one in enumerate(one for reader in readers for one in reader.feedback()):
        given.setdefault(one["id"], []).append((float(one["at_unix_s"]), number, _feedback_view(one)))
    return given


def _feedback_view(one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one.get(name) for name in ("label", "value", "name", "at_unix_s")}


def _challenger_view(ended: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": ended.get("state", State.PENDING.value),
        "reason": ended.get("reason"),
        "detail": ended.get("detail"),
        "observation": ended.get("observation"),
        "comparison": ended.get("comparison"),
        "floor": ended.get("floor"),
        "ended_unix_s": ended.get("at_unix_s"),
    }
