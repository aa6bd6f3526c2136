"""Parquet files of a sealed segment (zstd): written once from rows, read by column or one record at a time.

    STORE/segments/rollout=4f0c1a/day=2026-11-24/00000007.parquet

A file holds its records in the order of the log; a segment with several files is read in that order too.
"""

from __future__ import annotations

import heapq
import io
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from understudy.errors import Erased, RecordError
from understudy.record.codec import well_formed
from understudy.record.columns import COLUMNS, NO_ROLLOUT
from understudy.record.manifest import Manifest, SealedFile
from understudy.record.store import Store

ROW_GROUP: Final = 512  # rows: what is read to find one record, some 4 MB before compression
CACHED_GROUPS: Final = 16
LAST_UNIX_S: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_TYPES: Final = {
    "map<string,string>": ("string", "string"),
    "map<string,int64>": ("string", "int64"),
    "map<string,double>": ("string", "double"),
}


@cache
def arrow_schema() -> Any:
    """COLUMNS as a pyarrow.Schema."""
    import pyarrow as pa

    def arrow_type(name: str) -> Any:
        if name in _TYPES:
            key, value = _TYPES[name]
            return pa.map_(pa.type_for_alias(key), pa.type_for_alias(value))
        if name == "list<string>":
            return pa.list_(pa.string())
        return pa.type_for_alias(name)

    return pa.schema([(name, arrow_type(kind)) for name, (kind, _) in COLUMNS.items()])


def to_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pyarrow.Table."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=arrow_schema())


class SegmentFiles:
    """Collects rows and makes the files of one segment; memory: the compressed files and one row group each."""

    def __init__(self, segment: int) -> None:
        self._segment = segment
        self._parts: dict[tuple[str, str], _Part] = {}

    def add(self, row: Mapping[str, Any], unix_s: float) -> None:
        """One more row. ``unix_s`` chooses the day, whatever a client has called a time."""
        rollout = row.get("rollout") or NO_ROLLOUT
        key = (rollout, datetime.fromtimestamp(min(max(0.0, unix_s), LAST_UNIX_S), UTC).strftime("%Y-%m-%d"))
        if key not in self._parts:
            self._parts[key] = _Part()
        self._parts[key].add(row)

    def write(self, store: Store) -> tuple[SealedFile, ...]:
        """Every file, durable. Raises OSError."""
        written = []
        for (rollout, day), part in sorted(self._parts.items()):
            path = f"segments/rollout={_safe(rollout)}/day={day}/{self._segment:08d}.parquet"
            store.write(path, part.content())
            written.append(SealedFile(path, rollout, day, part.num_rows))
        return tuple(written)


class _Part:
    """One file in the making."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._rows: list[Mapping[str, Any]] = []
        self._buffer = io.BytesIO()
        self._writer = parquet_writer(self._buffer)

    def add(self, row: Mapping[str, Any]) -> None:
        self.num_rows += 1
        self._rows.append(row)
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def content(self) -> bytes:
        self._flush()
        self._writer.close()
        return self._buffer.getvalue()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(to_table(self._rows))
            self._rows.clear()


def parquet_writer(target: Any) -> Any:
    """A writer of our files: zstd, dictionaries where values repeat."""
    import pyarrow.parquet as pq

    repeated = ("kind", "rollout", "endpoint", "session", "challenger", "state", "reason", "label", "name", "action",
                "model", "outcome", "rendered", "finish_reason")  # fmt: skip
    return pq.ParquetWriter(
        target, arrow_schema(), compression="zstd", use_dictionary=list(repeated), write_statistics=True
    )


def rewrite(store: Store, path: str, change: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> int:
    """Replace rows of a file where ``change`` gives another one; how many that were.

    Raises:
        RecordError: it cannot be read.
        OSError: the store does not take it; the file is as it was.
    """
    target, num_changed = io.BytesIO(), 0
    writer = parquet_writer(target)
    with _Reading(store, path) as file:
        for group in range(file.num_row_groups):
            rows = list(_plain(file.read_row_group(group)))
            changed = [change(row) for row in rows]
            num_changed += sum(one is not None for one in changed)
            writer.write_table(to_table([old if new is None else new for old, new in zip(rows, changed, strict=True)]))
    writer.close()
    if num_changed:
        store.write(path, target.getvalue())
    return num_changed


class SealedSegment:
    """Reads one sealed segment. Not thread-safe."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.manifest, self._store = manifest, store
        self._groups: OrderedDict[tuple[str, int], dict[int, bytes | None]] = OrderedDict()
        self._starts: dict[str, list[tuple[int, int]]] = {}  # by file: first and last offset of each row group
        self._versions: dict[str, Hashable] = {}  # by file: of which all that is

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows in the order of the log, with ``offset`` and these columns; one row group of each file in memory.

        A segment that was removed, with all of its files, has none; the audit tells whether that was entered.

        Raises:
            RecordError: a file cannot be read, or one of several is gone.
        """
        if self._is_removed():
            return
        wanted = list(dict.fromkeys(("offset", *columns)))
        parts = [self._rows_of(file.path, wanted) for file in self.manifest.files]
        yield from heapq.merge(*parts, key=lambda row: row["offset"])

    def document(self, offset: int) -> bytes | None:
        """The record that began at ``offset``; None where it was erased.

        Raises:
            Erased: with its whole segment.
            RecordError: there is none, or a file cannot be read.
        """
        if self._is_removed():
            raise Erased(f"{self._store.url}: segment {self.manifest.segment} was removed")
        for file in self.manifest.files:
            self._forget_replaced(file.path)
            for group, (first, last) in enumerate(self._offsets(file.path)):
                if first <= offset <= last:
                    found = self._group(file.path, group)
                    if offset in found:
                        return found[offset]
        raise RecordError(f"{self._store.url}: segment {self.manifest.segment} has no record at byte {offset}")

    def offsets_where(self, columns: Sequence[str], values: Collection[str]) -> list[int]:
        """Where the records begin of which one of these columns has one of these values: compared in C, by column.

        Raises:
            RecordError: a file cannot be read.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        offsets: list[int] = []
        wanted = pa.array(list(map(well_formed, values)), pa.string())
        for file in () if self._is_removed() else self.manifest.files:
            with self._reading(file.path) as reader:
                table = reader.read(columns=["offset", *columns])
            hits = [pc.fill_null(pc.is_in(table[name], value_set=wanted), False) for name in columns]
            mask = hits[0]
            for other in hits[1:]:
                mask = pc.or_(mask, other)
            offsets += table["offset"].filter(mask).to_pylist()
        return sorted(offsets)

    def _forget_replaced(self, path: str) -> None:
        """What was erased from a file must not be served from memory."""
        try:
            version = self._store.version(path)
        except OSError as error:
            raise RecordError(f"{self._store.url}/{path} cannot be read: {error}") from error
        if self._versions.setdefault(path, version) != version:
            self._versions[path] = version
            self._starts.pop(path, None)
            for key in [key for key in self._groups if key[0] == path]:
                del self._groups[key]

    def _is_removed(self) -> bool:
        return not any(self._store.exists(file.path) for file in self.manifest.files)

    def _rows_of(self, path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
        with self._reading(path) as file:
            for group in range(file.num_row_groups):
                yield from _plain(file.read_row_group(group, columns=columns))

    def _group(self, path: str, group: int) -> dict[int, bytes | None]:
        if (path, group) not in self._groups:
            with self._reading(path) as file:
                table = file.read_row_group(group, columns=["offset", "document"])
            documents = (None if one is None else one.encode("utf-8") for one in table["document"].to_pylist())
            self._groups[path, group] = dict(zip(table["offset"].to_pylist(), documents, strict=True))
            while len(self._groups) > CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((path, group))
        return self._groups[path, group]

    def _offsets(self, path: str) -> list[tuple[int, int]]:
        if path not in self._starts:
            with self._reading(path) as file:
                column = list(COLUMNS).index("offset")
                groups = (file.metadata.row_group(group).column(column) for group in range(file.num_row_groups))
                self._starts[path] = [(group.statistics.min, group.statistics.max) for group in groups]
        return self._starts[path]

    def _reading(self, path: str) -> _Reading:
        return _Reading(self._store, path)


class _Reading:
    """One Parquet file, open; what goes wrong in the block is a RecordError that names it."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path

    def __enter__(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self._file = self._store.open(self._path)
            try:
                return pq.ParquetFile(self._file)
            except BaseException:
                self._file.close()
                raise
        except (OSError, pa.ArrowException) as error:
            raise RecordError(f"{self._store.url}/{self._path} cannot be read: {error}") from error

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        import pyarrow as pa

        self._file.close()
        if isinstance(error, OSError | pa.ArrowException):
            raise RecordError(f"{self._store.url}/{self._path} cannot be read: {error}") from error


def _plain(table: Any) -> Iterator[dict[str, Any]]:
    """Rows with maps as dicts."""
    maps = [name for name, (kind, _) in COLUMNS.items() if kind in _TYPES and name in table.column_names]
    for row in table.to_pylist():
        for name in maps:
            if row[name] is not None:
                row[name] = dict(row[name])
        yield row


def _safe(rollout: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", rollout) or NO_ROLLOUT
