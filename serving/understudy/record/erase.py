"""Erasing what belongs to a user or a session: the records become tombstones, and the chain still holds.

    ROOT/erasures/3f1c....json             {"tag": "user", "hmac": "...", "requested_unix_s": ...}
    WRITER's store/erasures/3f1c....json   {"exchange_ids": [...]}: what this writer has erased for it so far

The request names the value by the record's own keyed hash, so that it does not itself hold what is to be forgotten.
Each writer serves it (care.py): it enters the numbers of the records into its log, then takes documents and columns
out of its sealed segments. It looks again while the request is young, for what was still on its way.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from understudy.errors import RecordError
from understudy.record.columns import COLUMNS, KEPT_WHEN_ERASED, row_of
from understudy.record.lines import links_of, record_of, scan_segment, segments
from understudy.record.privacy import Privacy
from understudy.record.sealed import rewrite
from understudy.record.sources import Source
from understudy.record.store import Store

FOLDER: Final = "erasures"
YOUNG_S: Final = 900.0  # longer than shadow work may take
_LOOKED_AT: Final = ("n", "kind", "tags", "exchange_id", "request_id", "client_request_id", "id")


@dataclass(frozen=True, slots=True)
class Erasure:
    """A request to forget everything with one value of one tag."""

    id: str
    tag: str
    hmac: str
    requested_unix_s: float


def request(root: Store, tag: str, value: str, privacy: Privacy) -> Erasure:
    """Ask every writer of the record to forget. Raises OSError."""
    erasure = Erasure(uuid.uuid4().hex, tag, privacy.pseudonym(value), time.time())
    root.write(f"{FOLDER}/{erasure.id}.json", json.dumps(asdict(erasure)).encode())
    return erasure


def requests(root: Store) -> list[Erasure]:
    """All there are, oldest first. Raises OSError."""
    found = [Erasure(**json.loads(root.read(path))) for path in root.list(FOLDER)]
    return sorted(found, key=lambda one: one.requested_unix_s)


def is_due(erasure: Erasure, store: Store, now_unix_s: float) -> bool:
    """Whether a writer has not served it yet, or should look again."""
    return now_unix_s - erasure.requested_unix_s < YOUNG_S or served(erasure, store) is None


def served(erasure: Erasure, store: Store) -> set[str] | None:
    """The exchanges that a writer has erased for it; None where it has not looked yet."""
    try:
        return set(json.loads(store.read(f"{FOLDER}/{erasure.id}.json"))["exchange_ids"])
    except FileNotFoundError:
        return None


def note_served(erasure: Erasure, store: Store, exchange_ids: Iterable[str]) -> None:
    """Remember it. Raises OSError."""
    content = json.dumps({"exchange_ids": sorted(exchange_ids)}).encode()
    store.write(f"{FOLDER}/{erasure.id}.json", content)


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be erased: exchanges, and the places and numbers of every record about them."""

    exchange_ids: frozenset[str]
    places: Mapping[int, frozenset[int]]  # segment: offsets
    ns: tuple[int, ...]


def find(source: Source, erasure: Erasure, privacy: Privacy, known: set[str]) -> Found:
    """Everything that a request means. Two passes; memory: the ids of the exchanges. Raises RecordError."""
    exchange_ids, ids = set(known), set(known)
    for _, row in rows(source):
        value = (row.get("tags") or {}).get(erasure.tag)
        if value is not None and erasure.hmac in (value, privacy.pseudonym(value)):
            exchange_ids.add(row["exchange_id"])
        if row.get("exchange_id") in exchange_ids:
            ids |= {id for name in _LOOKED_AT[3:] if (id := row.get(name))}
    places: dict[int, set[int]] = {}
    ns = []
    for segment, row in rows(source):
        if row.get("exchange_id") in exchange_ids or (row["kind"] == "feedback" and row.get("id") in ids):
            places.setdefault(segment, set()).add(row["offset"])
            if row.get("n") is not None:
                ns.append(row["n"])
    fixed = {segment: frozenset(offsets) for segment, offsets in places.items()}
    return Found(frozenset(exchange_ids), fixed, tuple(ns))


def rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The columns that erasing looks at, of every record that is there, sealed or not, with its segment."""
    numbers = segments(source.log)
    sealed = set(source.sealed())
    for number in sorted(sealed):
        for row in source.open_sealed(number).rows(_LOOKED_AT):
            if row["kind"] is not None:
                yield number, row
    for number in numbers:
        if number not in sealed:
            for place, line in scan_segment(source.log, number, lambda _: None, is_last=number == numbers[-1]):
                links = links_of(line)
                n = None if links is None else links[0]
                yield number, row_of(record_of(line)) | {"n": n, "offset": place.offset_bytes}


def erase(source: Source, found: Found) -> int:
    """Make tombstones; every segment in question is sealed. Returns how many records there were left to erase.

    Raises:
        RecordError: a segment is not sealed, or cannot be read.
        OSError: the store does not take it. Call it again.
    """
    num_erased = 0
    for segment, offsets in found.places.items():
        for file in source.manifest(segment).files:
            num_erased += rewrite(source.store, file.path, lambda row, these=offsets: _tombstone(row, these))  # type: ignore[misc]
    return num_erased


def _tombstone(row: Mapping[str, Any], offsets: frozenset[int]) -> dict[str, Any] | None:
    """The row without what it said; None where it stays as it is."""
    if row["offset"] not in offsets or row["document"] is None:
        return None
    return {name: row[name] if name in KEPT_WHEN_ERASED else None for name in COLUMNS}


def check_tag(text: str) -> tuple[str, str]:
    """``name=value`` in two. Raises RecordError."""
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise RecordError(f"--tag {text!r} must be name=value")
    return name, value
