"""The record keeper: one folder, its writer thread, and finding in it what was written.

    keeper = RecordKeeper.open(folder, describe_parameters=...)
    keeper.recovery             what the time before has left: end the unfinished ones, go on with the counts
    keeper.append(event)        never waits, never raises
    await keeper.flush()        everything appended before is on disk
    keeper.find(id)             in a thread: it reads files
    keeper.close()

Every replica has a folder of its own; a second writer of one folder is refused.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from understudy.errors import NotKept, RecordError
from understudy.record.backlog import Flush
from understudy.record.index import MAX_EXCHANGES, Index
from understudy.record.lines import Place
from understudy.record.log import MAX_SEGMENT_BYTES, Disk, SegmentLog
from understudy.record.privacy import FULL, Privacy
from understudy.record.reading import RecordReader
from understudy.record.recover import Recovery, replay
from understudy.record.schema import DescribeParameters, Event, Head
from understudy.record.scribe import Scribe
from understudy.record.signing import Signer
from understudy.record.sources import Source
from understudy.record.store import LocalStore, Store
from understudy.record.writer import World, Writer, WriterLimits

DEFAULT_LIMITS = WriterLimits()
REAL_DISK = Disk()
REAL_WORLD = World()


class RecordKeeper:
    """The one writer of a folder. Everything but its coroutines may be called from any thread.

    Attributes:
        recovery: what was found when the folder was opened.
        reader: find() and iterate(), and the damage they met.
    """

    def __init__(self, recovery: Recovery, reader: RecordReader, writer: Writer, scribe: Scribe) -> None:
        """Use open()."""
        self.recovery, self.reader, self._writer, self._scribe = recovery, reader, writer, scribe

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        describe_parameters: DescribeParameters,
        rollout: str = "",
        privacy: Privacy = FULL,
        store: Store | None = None,
        signer: Signer | None = None,
        limits: WriterLimits = DEFAULT_LIMITS,
        max_segment_bytes: int = MAX_SEGMENT_BYTES,
        max_indexed: int = MAX_EXCHANGES,
        disk: Disk = REAL_DISK,
        world: World = REAL_WORLD,
    ) -> Self:
        """Take a folder, made if need be, read what is in it (about 500 MB/s) and start the writer thread.

        Args:
            folder: of this writer alone.
            describe_parameters: turns ``Exchange.parameters`` into a plain dict, later, in the writer thread:
                it must not depend on anything that changes. If it fails, the exchange is recorded without.
            rollout: what is compared, and by which gates; written into every record.
            privacy: what of a text may be written.
            store: where sealed segments go; the folder itself where not given.
            signer: signs checkpoints.
            limits: of the writer.
            max_segment_bytes: a segment as large as this is followed by a new one.
            max_indexed: exchanges that find() finds without a scan, about 1 KB of memory each.
            disk: the calls that can fail.
            world: clocks and waiting.

        Raises:
            RecordError: another writer has the folder, or the store does not allow it.
        """
        source = Source(folder, store or LocalStore(folder))
        segment, chain, _ = source.end_of_sealed()
        log = SegmentLog(folder, max_segment_bytes=max_segment_bytes, disk=disk, sealed=(segment, chain))
        index, index_lock = Index(max_indexed), threading.Lock()
        try:
            recovery = replay(source, index, log.num_cut_bytes)
        except BaseException:
            log.close()
            raise

        def on_disk(heads: Sequence[Head], places: Sequence[Place], /) -> None:
            with index_lock:
                for head, place in zip(heads, places, strict=True):
                    index.add(head, place)

        scribe = Scribe(describe_parameters, rollout, privacy)
        checkpoint = None if signer is None else partial(signer.checkpoint, folder.name)
        writer = Writer(log, on_disk, scribe, limits, world, checkpoint)
        writer.start()
        return cls(recovery, RecordReader(source, index, index_lock), writer, scribe)

    @property
    def num_lost(self) -> int:
        """Events since open() that are not in the log and never will be."""
        return self._writer.num_lost

    @property
    def num_at_once(self) -> int:
        """So many may be appended between two flushes by who has many; append_all() does it."""
        return self._writer.num_at_once

    @property
    def num_undescribed(self) -> int:
        """Exchanges since open() that were recorded without their parameters."""
        return self._scribe.num_undescribed

    @property
    def num_unredacted(self) -> int:
        """Records since open() that have hashes and metrics only, because a redactor raised."""
        return self._scribe.privacy.num_failed

    def append(self, event: Event) -> None:
        """Make an event durable, later: never waits, never raises, keeps a reference until it is written.

        On disk within 50 ms and one fsync. An event that finds the queue full, or comes after close(), is
        counted in ``num_lost``.
        """
        self._writer.append(event)

    def append_all(self, events: Iterable[Event]) -> None:
        """Make any number of events durable, no faster than they are written. Blocks; not on an event loop.

        Raises:
            RecordError: some are not on disk. What was lost before and no flush() has spoken of counts too.
        """
        remaining = iter(events)
        while batch := list(islice(remaining, self.num_at_once)):
            for event in batch:
                self.append(event)
            asyncio.run(self.flush())

    async def write(self, event: Event) -> None:
        """Make an event durable, however full the queue is. It is queued before this first waits.

        Raises:
            RecordError: it is not yet, and waits for the store to work again; or it is lost, and counted.
        """
        await self._flush(event)

    async def keep(self, event: Event) -> None:
        """Return when the event has its room: it is on disk, or waits for the store to work again.

        Raises:
            NotKept: there is none. It is not written, and not counted as lost.
        """
        try:
            await self._flush(event, when_kept=True)
        except RecordError as error:
            raise NotKept(f"there is no room for more; {error}") from error

    def begin_file(self) -> None:
        """What is appended next begins a new file of the log: all before it can be sealed."""
        self._writer.begin_file()

    def enter(self, *events: Event) -> None:
        """Make events durable now, one by one, in a new file: all before can be sealed. Blocks; not on an event loop.

        What was lost before does not matter here, for the caller would think that this was, and enter it again.

        Raises:
            RecordError: one is not durable, and neither it nor those after it ever will be: it can be entered again.
        """
        recording, why_not = self.health()
        if not recording:
            raise RecordError(f"nothing is recorded: {why_not}")
        self._writer.begin_file()
        for event in events:
            asyncio.run(self._flush(event, or_never=True))

    async def flush(self) -> None:
        """Return when everything appended before is on disk.

        Raises:
            RecordError: it is not: recording is off (the events still wait to be written), the writer is not
                running, or events were lost that no flush() has spoken of yet.
        """
        await self._flush()

    async def _flush(self, event: Event | None = None, *, or_never: bool = False, when_kept: bool = False) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._writer.flush(Flush(loop, done, event, or_never, when_kept))
        await done

    def health(self) -> tuple[bool, str]:
        """Whether events become durable, and if not, why. Cheap, never raises; shown in status."""
        return self._writer.health()

    def why_full(self) -> str:
        """Why what is appended now would be lost; empty where it is kept. Cheap, never raises."""
        return self._writer.why_full()

    def find(self, id: str) -> list[dict[str, Any]]:
        """Exchanges on disk by one of their ids; see RecordReader.find. Reads files: call it in a thread."""
        found = self.reader.find(id)
        pseudonym = self._scribe.privacy.id(id)
        return found if found or pseudonym == id else self.reader.find(pseudonym)

    def iterate(self) -> Iterator[dict[str, Any]]:
        """All exchanges on disk; see RecordReader.iterate. Reads files: use it in a thread."""
        return self.reader.iterate()

    def close(self, timeout_s: float = 30.0) -> None:
        """Flush, end the writer and give the folder back. Blocks: call it in a thread. May be called again.

        Raises:
            RecordError: something that was appended is not on disk, or the store has not answered in time.
        """
        self._writer.stop(timeout_s)
