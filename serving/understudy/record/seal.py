"""Sealing: a complete file of the log becomes a sealed segment, then the file is retired.

    1  read the file, make rows             nothing is changed
    2  write the segment's Parquet files    not seen by readers yet; written again by the next attempt
    3  write the manifest                   from here on the segment is what the manifest says
    4  remove the log's file                it was said twice; readers took the manifest

Each step is durable before the next begins, so a crash between any two loses and doubles nothing. Only files that no
writer appends to are sealed: all but the newest, or all where the folder's lock is held. Damaged lines are kept as
they are, as rows of kind ``damaged``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from understudy.errors import RecordError
from understudy.record import merkle
from understudy.record.codec import decode_head
from understudy.record.columns import damaged_row, row_of
from understudy.record.lines import Chain, is_whole, links_of, record_of, segment_path, segments
from understudy.record.lock import FolderLock
from understudy.record.manifest import NO_MANIFEST, Manifest, SealedFile, write_manifest
from understudy.record.recover import Ledger
from understudy.record.sealed import SegmentFiles
from understudy.record.signing import MANIFEST
from understudy.record.sources import Source
from understudy.record.store import sync_folder

Sign = Callable[[bytes, bytes], dict[str, str]]
SEAL_LOCK = "seal.lock"


def seal(source: Source, writer: str, *, include_newest: bool = False, sign: Sign | None = None) -> list[Manifest]:
    """Seal what is complete; one sealer at a time. Returns the new manifests.

    Args:
        source: whose log it is.
        writer: its name.
        include_newest: also the newest file; the caller holds the writer's lock.
        sign: Signer.sign, where there is a key.

    Raises:
        RecordError: another process seals, or a file cannot be read.
        OSError: the store does not take the segment; the log is as it was.
    """
    with sealing(source.log):
        numbers, made, sealed = segments(source.log), [], set(source.sealed())
        for number in numbers if include_newest else numbers[:-1]:
            if number not in sealed:
                made.append(seal_segment(source, number, writer, sign))
            retire(source.log, number)
    return made


@contextmanager
def sealing(log: Path) -> Iterator[None]:
    """The right to seal and to rewrite sealed segments."""
    try:
        lock = FolderLock(log, SEAL_LOCK)
    except OSError as error:
        raise RecordError(f"{log} cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.close()


def seal_segment(source: Source, number: int, writer: str, sign: Sign | None) -> Manifest:
    """Steps 1 to 3."""
    before = source.end_of_sealed()
    collected = _Segment(number, before.chain, before.manifest)
    path = segment_path(source.log, number)
    offset = 0
    try:
        with path.open("rb") as file:
            for line in file:
                collected.add(line, offset)
                offset += len(line)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    files = collected.files.write(source.store)
    manifest = collected.manifest(writer, files)
    if sign is not None:
        manifest = replace(manifest, signature=sign(MANIFEST, manifest.body))
    write_manifest(source.store, manifest)
    return manifest


def retire(log: Path, number: int) -> None:
    """Step 4."""
    segment_path(log, number).unlink(missing_ok=True)
    sync_folder(log)


class _Segment:
    """What is known of a segment while its lines are read."""

    def __init__(self, number: int, chain: Chain, previous: Manifest | None) -> None:
        self.files = SegmentFiles(number)
        self._number, self._before, self._previous = number, chain, previous
        self._ledger = Ledger() if previous is None else Ledger.restored(previous.ledger)
        self._shas: list[bytes] = []
        self._ns: list[int] = []
        self._chain = chain.head
        self._times: list[float] = []
        self._sealed_unix_s = time.time()
        self._num_records = self._num_unchained = 0

    def add(self, line: bytes, offset: int) -> None:
        """One line of the file, whole or not."""
        self._num_records += 1
        row = self._row(line)
        links = links_of(line)
        if links is None:
            self._num_unchained += 1
        else:
            n, sha, chain = links
            row |= {"n": n, "sha": sha, "chain": chain}
            self._shas.append(sha)
            self._ns.append(n)
            self._chain = chain
        unix_s = row.get("at_unix_s") or (self._times[-1] if self._times else 0.0)
        self._times.append(min(max(0.0, unix_s), self._sealed_unix_s))
        self.files.add(row | {"offset": offset}, unix_s)

    def manifest(self, writer: str, files: tuple[SealedFile, ...]) -> Manifest:
        """Once every line was added."""
        return Manifest(
            segment=self._number,
            writer=writer,
            files=files,
            num_records=self._num_records,
            num_unchained=self._num_unchained,
            first_n=self._ns[0] if self._ns else None,
            last_n=self._ns[-1] if self._ns else (self._before.n - 1 if self._before.n else None),
            chain_before=self._before.head.hex(),
            chain=self._chain.hex(),
            merkle_root=merkle.root(self._shas).hex(),
            first_unix_s=min(self._times, default=0.0),
            last_unix_s=max(self._times, default=0.0),
            previous=NO_MANIFEST if self._previous is None else self._previous.sha,
            ledger=self._ledger.saved(),
            sealed_unix_s=self._sealed_unix_s,
        )

    def _row(self, line: bytes) -> dict[str, Any]:
        kept = line
        if is_whole(line):
            kept = record_of(line)
            with suppress(RecordError):
                row = row_of(kept)
                self._ledger.add(decode_head(kept))
                return row
        self._ledger.num_damaged += 1
        return damaged_row(kept)
