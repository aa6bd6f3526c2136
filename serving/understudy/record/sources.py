"""One writer's record wherever it is: the log's files that are still there, and the sealed segments.

A segment is sealed when it has a manifest; then its Parquet files count, whether or not the log's file is still
there. Reading takes no lock: a segment that is sealed and retired while somebody reads is read from its files.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from understudy.errors import Erased, RecordError
from understudy.record.codec import decode_head
from understudy.record.columns import DAMAGED
from understudy.record.lines import Chain, Place, damage, read, record_of, scan_segment, segments
from understudy.record.manifest import Manifest, read_manifest, sealed_segments
from understudy.record.schema import VERSION, Head
from understudy.record.sealed import SealedSegment
from understudy.record.store import LocalStore, Store

MAX_OPEN: Final = 2  # sealed segments whose newest row groups stay in memory
Damaged = Callable[[RecordError], None]
_OF_HEAD: Final = msgspec.structs.fields(Head)


class Sealed(NamedTuple):
    """Where the sealed part of a record ends: what the log goes on from."""

    segment: int
    chain: Chain
    manifest: Manifest | None


class Source:
    """Reads one writer's record. Thread-safe. Every method blocks on files and raises RecordError.

    Args:
        log: the folder of the log's files; it need not be there.
        store: where sealed segments are.
    """

    def __init__(self, log: Path, store: Store) -> None:
        self.log, self.store = log, store
        self._open: OrderedDict[int, SealedSegment] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def at(folder: Path) -> Source:
        """A folder with log and sealed segments in it."""
        return Source(folder, LocalStore(folder))

    def sealed(self) -> list[int]:
        """The numbers of the sealed segments, oldest first."""
        try:
            return sealed_segments(self.store)
        except OSError as error:
            raise RecordError(f"{self.store.url} cannot be read: {error}") from error

    def end_of_sealed(self) -> Sealed:
        """The newest sealed segment; number 0 and an empty chain where there is none."""
        numbers = self.sealed()
        if not numbers:
            return Sealed(0, Chain(), None)
        manifest = self.manifest(numbers[-1])
        n = 0 if manifest.last_n is None else manifest.last_n + 1
        return Sealed(numbers[-1], Chain(n, bytes.fromhex(manifest.chain)), manifest)

    def manifest(self, segment: int) -> Manifest:
        """Of a sealed segment."""
        try:
            return read_manifest(self.store, segment)
        except FileNotFoundError as error:
            raise RecordError(f"{self.store.url}: segment {segment} has no manifest") from error

    def heads(self, damaged: Damaged, *, unsealed_only: bool = False) -> Iterator[tuple[Place, Head]]:
        """The small fields of every event, oldest first. ``damaged`` is told of every line that is none."""
        numbers = segments(self.log)  # before the sealed ones: a segment may be sealed in between
        sealed = set(self.sealed())
        last = numbers[-1] if numbers else 0
        for number in sorted(sealed.union(numbers)):
            if number not in sealed:
                try:
                    yield from self._heads_of_log(number, damaged, is_last=number == last)
                    continue
                except FileNotFoundError:  # sealed and retired in the meantime; nothing of it was read yet
                    pass
            if not unsealed_only:
                yield from self._heads_of_sealed(number, damaged)

    def heads_where(
        self, columns: Sequence[str], values: Collection[str], damaged: Damaged, *, newest_first: bool = False
    ) -> Iterator[tuple[Place, Head]]:
        """Only those heads of which one of these columns has one of these values, oldest first.

        ``newest_first``: the newest segment first; in it the oldest first all the same.
        """
        numbers = segments(self.log)
        sealed = set(self.sealed())
        for number in sorted(sealed.union(numbers), reverse=newest_first):
            if number not in sealed:
                try:
                    for place, head in self._heads_of_log(number, damaged, is_last=number == numbers[-1]):
                        if any(getattr(head, name) in values for name in columns):
                            yield place, head
                    continue
                except FileNotFoundError:  # sealed and retired in the meantime
                    pass
            for offset in self.open_sealed(number).offsets_where(columns, values):
                place = Place(number, offset)
                yield place, decode_head(self.document(place))

    def document(self, place: Place) -> bytes:
        """The record at one place, as JSON.

        Raises:
            Erased: it was, on purpose.
            RecordError: it is not what was written, or is gone.
        """
        try:
            return record_of(read(self.log, place))
        except FileNotFoundError:
            with self._lock:
                found = self._segment(place.segment).document(place.offset_bytes)
        if found is None:
            raise Erased(f"{self.log}: segment {place.segment}, byte {place.offset_bytes}: the record was erased")
        return found

    def forget(self) -> None:
        """Drop what is in memory of sealed segments: something may have been erased from them."""
        with self._lock:
            self._open.clear()

    def open_sealed(self, segment: int) -> SealedSegment:
        """A sealed segment to read, for one thread."""
        return SealedSegment(self.store, self.manifest(segment))

    def _heads_of_log(self, number: int, damaged: Damaged, *, is_last: bool) -> Iterator[tuple[Place, Head]]:
        for place, line in scan_segment(self.log, number, damaged, is_last=is_last):
            try:
                head = decode_head(line)
            except RecordError as error:
                damaged(damage(self.log, place, error))
            else:
                yield place, head

    def _heads_of_sealed(self, number: int, damaged: Damaged) -> Iterator[tuple[Place, Head]]:
        names = [each.name for each in _OF_HEAD]
        for row in self.open_sealed(number).rows(names):
            place = Place(number, row["offset"])
            if row["kind"] == DAMAGED:
                damaged(damage(self.log, place, "the line is not what was written"))
            elif row["v"] is not None:  # it was not erased
                yield place, _head(row)

    def _segment(self, number: int) -> SealedSegment:
        if number not in self._open:
            self._open[number] = self.open_sealed(number)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


def _head(row: dict[str, Any]) -> Head:
    known = {each.name: row[each.name] for each in _OF_HEAD if row[each.name] is not None}
    known["challengers"] = tuple(known.get("challengers", ()))
    return Head(**{"v": VERSION, **known})
