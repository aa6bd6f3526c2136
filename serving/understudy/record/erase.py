"""Erasing what belongs to a user or a session: the records become tombstones, and the chain still holds.

    ROOT/erasures/3f1c....json             {"tag": "user", "hmac": "...", "requested_unix_s": ..., "by": ...}
    WRITER's store/erasures/3f1c....json   {"exchange_ids": [...], "id_hmacs": [...], "looked_unix_s": ...}

The request names the value by the record's own keyed hash, so that it does not itself hold what is to be forgotten.
Each writer serves it (care.py): it gathers over all writers which exchanges are meant (feedback is also in the folder
of whoever was given it), notes them, enters the numbers of its own records into its log, then takes documents and
columns out of its sealed segments. It looks again until the request was not young at its last look, for what was
still on its way.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from understudy.errors import RecordError
from understudy.record.columns import COLUMNS, KEPT_WHEN_ERASED, row_or_damaged
from understudy.record.lines import links_of, record_of, scan_segment, segments
from understudy.record.privacy import Privacy
from understudy.record.sealed import rewrite
from understudy.record.sources import Source
from understudy.record.store import Store

FOLDER: Final = "erasures"
YOUNG_S: Final = 900.0  # longer than shadow work may take
_IDS: Final = ("exchange_id", "request_id", "client_request_id")
_LOOKED_AT: Final = ("n", "kind", "tags", "id", *_IDS)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Erasure:
    """A request to forget everything with one value of one tag."""

    id: str
    tag: str
    hmac: str
    requested_unix_s: float
    by: str | None = None
    """Who asked for it; None in requests from before that was noted."""


def request(root: Store, tag: str, value: str, privacy: Privacy, by: str | None = None) -> Erasure:
    """Ask every writer of the record to forget. Raises OSError."""
    erasure = Erasure(uuid.uuid4().hex, tag, privacy.pseudonym(value), time.time(), by)
    root.write(f"{FOLDER}/{erasure.id}.json", json.dumps(asdict(erasure)).encode())
    return erasure


def requests(root: Store) -> list[Erasure]:
    """All there are, oldest first. Raises OSError."""
    found = [Erasure(**json.loads(root.read(path))) for path in root.list(FOLDER)]
    return sorted(found, key=lambda one: one.requested_unix_s)


@dataclass(frozen=True, slots=True)
class Served:
    """What a writer has done about a request.

    Attributes:
        exchange_ids: every exchange that it means.
        id_hmacs: keyed hashes of all of their ids, for feedback that is found later or elsewhere.
        entered_ns: of the records that the log says are erased, though they may not be yet; null: it says nothing.
        looked_unix_s: when the last look began of which everything that was found is erased; 0: there was none.
    """

    exchange_ids: frozenset[str] = frozenset()
    id_hmacs: frozenset[str] = frozenset()
    looked_unix_s: float = 0.0
    entered_ns: frozenset[int] | None = None


def is_due(erasure: Erasure, store: Store) -> bool:
    """Whether a writer should look (again): its last look was while something could still be on its way."""
    return served(erasure, store).looked_unix_s < erasure.requested_unix_s + YOUNG_S


def served(erasure: Erasure, store: Store) -> Served:
    """What a writer has noted."""
    try:
        noted = json.loads(store.read(f"{FOLDER}/{erasure.id}.json"))
    except FileNotFoundError:
        return Served()
    entered = noted.get("entered_ns")
    return Served(
        frozenset(noted["exchange_ids"]),
        frozenset(noted.get("id_hmacs", ())),
        noted.get("looked_unix_s", 0.0),
        None if entered is None else frozenset(entered),
    )


def note_served(erasure: Erasure, store: Store, done: Served) -> None:
    """Remember it. Raises OSError."""
    noted = {
        "exchange_ids": sorted(done.exchange_ids),
        "id_hmacs": sorted(done.id_hmacs),
        "looked_unix_s": done.looked_unix_s,
        "entered_ns": None if done.entered_ns is None else sorted(done.entered_ns),
    }
    store.write(f"{FOLDER}/{erasure.id}.json", json.dumps(noted).encode())


@dataclass(frozen=True, slots=True)
class Found:
    """The places of every record that is to be erased, and their numbers."""

    places: Mapping[int, frozenset[int]]  # segment: offsets
    ns: tuple[int, ...]


def gather(sources: Iterable[Source], erasure: Erasure, privacy: Privacy) -> Served:
    """Which exchanges a request means, whoever wrote them, and what was noted before their rows were erased.

    Memory: the ids of these exchanges. Of a source that cannot be read what was read counts, and the request stays
    due: ``looked_unix_s`` is 0.
    """
    looked_unix_s = time.time()
    exchange_ids: set[str] = set()
    id_hmacs: set[str] = set()
    for source in sources:
        try:
            noted = served(erasure, source.store)
            exchange_ids |= noted.exchange_ids
            id_hmacs |= noted.id_hmacs | {privacy.known_as(id) for id in noted.exchange_ids}
            for _, row in rows(source):
                value = (row.get("tags") or {}).get(erasure.tag)
                if value is not None and erasure.hmac in (value, privacy.pseudonym(value)):
                    exchange_ids.add(row["exchange_id"])
                if row.get("exchange_id") in exchange_ids:
                    id_hmacs |= {privacy.known_as(id) for name in _IDS if (id := row.get(name))}
        except (RecordError, OSError) as error:
            logger.warning("erasing: %s cannot be read and stays due: %s", source.log, error)
            looked_unix_s = 0.0
    return Served(frozenset(exchange_ids), frozenset(id_hmacs), looked_unix_s)


def find(source: Source, meant: Served, privacy: Privacy) -> Found:
    """Every record of one writer about these exchanges. Raises RecordError."""
    places: dict[int, set[int]] = {}
    ns = []
    for segment, row in rows(source):
        is_feedback = row["kind"] == "feedback" and row.get("id") and privacy.known_as(row["id"]) in meant.id_hmacs
        if is_feedback or row.get("exchange_id") in meant.exchange_ids:
            places.setdefault(segment, set()).add(row["offset"])
            if row.get("n") is not None:
                ns.append(row["n"])
    return Found({segment: frozenset(offsets) for segment, offsets in places.items()}, tuple(ns))


def rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The columns that erasing looks at, of every record that is there, sealed or not, with its segment."""
    numbers = segments(source.log)
    sealed = set(source.sealed())
    for number in sorted(sealed.union(numbers)):
        if number not in sealed:
            try:
                for place, line in scan_segment(source.log, number, lambda _: None, is_last=number == numbers[-1]):
                    links = links_of(line)
                    n = None if links is None else links[0]
                    yield number, row_or_damaged(record_of(line)) | {"n": n, "offset": place.offset_bytes}
                continue
            except FileNotFoundError:  # sealed and retired in the meantime
                pass
        for row in source.open_sealed(number).rows(_LOOKED_AT):
            if row["kind"] is not None:
                yield number, row


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
