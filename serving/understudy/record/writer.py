"""The writer thread: takes events from a queue that never blocks, and puts them on disk in groups.

    append() -> queue -> [JSON, SHA-256] -> backlog -> [one write, one fsync] -> on_disk(heads, places)

The writer wakes every ``fsync_interval_s``, or at once for flush() and stop(), and puts everything that is
queued on disk with one fsync (one for every ``group_bytes``, when there is more: then a second thread, which needs no
GIL, writes one group while the next is encoded). When the store fails,
recording is off: events wait in a bounded backlog, oldest first, what comes beyond is lost and counted, and
the writer tries again every ``retry_s``. When the store works again the backlog is written, and after it a
``control`` record ``recording_resumed`` with the number of events that were lost. What is to be on disk at once or
never (``Flush.or_never``) is written alone and taken back where that fails: who was told that it is not made makes it
again.

No answer may fail or wait for the record, so this swallows errors as the lane's guard does. What it swallows is logged,
counted in ``num_lost``, and shown by health().
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from understudy.errors import RecordError
from understudy.record.attempt import Attempt
from understudy.record.backlog import Backlog, Flush, Group
from understudy.record.lines import Chain, Place, append_line
from understudy.record.log import SegmentLog
from understudy.record.schema import SERVER, Control, Event, Head
from understudy.record.scribe import Scribe

logger = logging.getLogger(__name__)

CLOSED = "it was closed"


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """Bounds of the writer's time and memory.

    Attributes:
        fsync_interval_s: an event is on disk at most this long after append(), plus one write and fsync.
        checkpoint_s: between two signatures of the chain, where there is a key and the chain has moved.
        retry_s: between two attempts while the store fails.
        stalled_s: an attempt that takes longer than this makes health() say so.
        max_queued: events, each a few references, that wait for the writer while it writes.
        max_backlog_bytes: encoded records that wait for the store to work again.
        group_bytes: written with one fsync.
    """

    fsync_interval_s: float = 0.05
    checkpoint_s: float = 60.0
    retry_s: float = 1.0
    stalled_s: float = 5.0
    max_queued: int = 10_000
    max_backlog_bytes: int = 64 << 20
    group_bytes: int = 2 << 20


class Wait(Protocol):
    """``threading.Event.wait``, or a test's."""

    def __call__(self, event: threading.Event, timeout: float, /) -> object:
        """Return when the event is set, or after ``timeout`` seconds."""


Checkpoint = Callable[[Chain], Mapping[str, object]]  # the detail of a checkpoint


class OnDisk(Protocol):
    """Told by the writer thread what has become durable."""

    def __call__(self, heads: Sequence[Head], places: Sequence[Place], /) -> None:
        """One place for each head, in the order of the log."""


@dataclass(frozen=True, slots=True)
class World:
    """Time, as the writer knows it: seconds on the monotonic and the wall clock, and a wait."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    wait: Wait = threading.Event.wait


class Writer:
    """One thread that owns a SegmentLog. append(), flush() and health() may be called from any thread.

    Attributes:
        num_lost: events that are not in the log and never will be.
        num_at_once: events that who has many appends between two flushes, so that the others' find room.
    """

    def __init__(
        self,
        log: SegmentLog,
        on_disk: OnDisk,
        scribe: Scribe,
        limits: WriterLimits,
        world: World,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Nothing happens before start(). ``checkpoint`` signs where the chain stands, if there is a key."""
        self._log, self._on_disk, self._scribe = log, on_disk, scribe
        self.num_at_once = max(1, limits.max_queued // 10)
        self._limits, self._world = limits, world
        # All that callers and the thread share. A deque's append, popleft and len are atomic.
        self._queue: deque[Event | Flush] = deque()
        self._backlog = Backlog(limits.group_bytes)
        self._wake, self._stopping = threading.Event(), False
        self._checkpoint, self._checkpoint_at_s, self._checkpoint_n = checkpoint, world.monotonic(), log.chain.n
        self._stopped: str | None = None
        self._off: OSError | None = None
        self._attempt_since_s: float | None = None
        self._loss = threading.Lock()
        self.num_lost = 0
        self._num_lost_recorded = self._num_lost_told = 0
        self._thread = threading.Thread(target=self._run, name="understudy-record", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def append(self, event: Event) -> None:
        """Queue one event: never waits, never raises. What finds no room is counted as lost."""
        if self._stopped is not None or len(self._queue) >= self._limits.max_queued:
            self._lose(1)
        else:
            self._queue.append(event)

    def flush(self, waiter: Flush) -> None:
        """Settle ``waiter`` when everything appended before is on disk, or with the reason why it is not."""
        self._queue.append(waiter)
        self._wake.set()
        if self._stopped is not None:
            waiter.settle(self._not_running())

    def begin_file(self) -> None:
        """The next group begins a new file of the log."""
        self._log.is_file_complete = True

    def stop(self, timeout_s: float) -> None:
        """Write what is queued, close the log and end the thread.

        Raises:
            RecordError: something that was appended is not on disk.
        """
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise RecordError(f"the store has not answered for {timeout_s} s; {len(self._queue)} events wait")
        self._drop_queued(len(self._queue))  # what another thread appended at this very moment
        if self._stopped != CLOSED or self.num_lost > self._num_lost_recorded:
            raise self._not_running()

    def health(self) -> tuple[bool, str]:
        """Whether events become durable, and if not, why. Cheap, never raises."""
        since_s, off, lost = self._attempt_since_s, self._off, f"{self.num_lost} events were lost"
        if self._stopped is not None or not self._thread.is_alive():
            return False, str(self._not_running())
        if off is not None:
            return False, f"recording is off: {off}; {self._backlog.num_bytes} bytes wait, {lost}"
        if since_s is not None and self._world.monotonic() - since_s > self._limits.stalled_s:
            return False, f"the store has not answered for {self._world.monotonic() - since_s:.0f} s; {lost}"
        return True, lost if self.num_lost else ""

    def why_full(self) -> str:
        """Why what is appended now would be lost; empty where it is kept, though it may wait for the store to work."""
        if self._stopped is not None or not self._thread.is_alive():
            return str(self._not_running())
        is_backlog_full = self._off is not None and self._backlog.num_bytes >= self._limits.max_backlog_bytes
        if is_backlog_full or len(self._queue) >= self._limits.max_queued:
            return f"there is no room for more; {self.health()[1] or 'the store is slow'}"
        return ""

    def _run(self) -> None:
        try:
            started_s = self._world.monotonic()
            while not self._stopping:
                interval_s = self._limits.fsync_interval_s if self._off is None else self._limits.retry_s
                self._world.wait(self._wake, max(0.0, started_s + interval_s - self._world.monotonic()))
                self._wake.clear()
                started_s = self._world.monotonic()
                if started_s - self._checkpoint_at_s >= self._limits.checkpoint_s:
                    self._check_in()
                self._cycle()
            self._cycle()
            self._check_in()
            self._cycle()
            self._end(CLOSED)
        except BaseException as error:  # nobody is above this frame: say it where it will be seen
            logger.exception("the record's writer died")
            self._end(f"{type(error).__name__}: {error}")

    def _check_in(self) -> None:
        """Sign where the chain stands, if it has moved: behind all that is encoded, before all that is queued."""
        self._checkpoint_at_s = self._world.monotonic()
        if self._checkpoint is not None and self._log.chain.n > self._checkpoint_n:
            self._push(Control("checkpoint", self._world.wall(), self._checkpoint(self._log.chain), actor=SERVER))
            self._checkpoint_n = self._log.chain.n

    def _cycle(self) -> None:
        """Put everything that is queued now on disk, or fail at it visibly."""
        num_queued = self._encode(len(self._queue), self._limits.group_bytes)
        while self._backlog:
            written, num_queued = self._write_group(num_queued)
            if not written:
                self._drop_queued(self._encode(len(self._queue), self._limits.max_backlog_bytes))
                self._backlog.refuse_flushes(RecordError(f"recording is off: {self._off}"))
                return
            num_queued = self._encode(num_queued, self._limits.group_bytes)
            if not self._backlog:
                self._record_loss()

    def _encode(self, num_queued: int, max_bytes: int) -> int:
        """Move up to ``num_queued`` to the backlog while it is smaller than that; how many are left.

        What is written at once or never is alone in it: nothing is chained to what may be taken back.
        """
        while num_queued and self._backlog.num_bytes < max_bytes:
            item = self._queue[0]
            or_never = isinstance(item, Flush) and item.or_never
            if or_never and self._off is None and self._backlog:
                break
            num_queued -= 1
            self._queue.popleft()
            chain_before = replace(self._log.chain) if or_never else None
            if not isinstance(item, Flush):
                self._push(item)
            elif or_never and self._off is not None:
                item.settle(RecordError(f"recording is off: {self._off}"))
            elif item.event is None or self._push(item.event):
                if item.when_kept:
                    item.settle(None)
                    continue
                group = self._backlog.first() if or_never else self._backlog.last()  # a large entry has filled its own
                group.flushes.append(item)
                if or_never:
                    group.chain_before, group.is_closed = chain_before, True
                    break
            else:
                item.settle(RecordError(f"it cannot be recorded: {type(item.event).__name__}; the log says why"))
        return num_queued

    def _take_back(self, group: Group, error: OSError) -> None:
        """What was to be written at once or never was not."""
        logger.error("an entry could not be made: %s", error)
        self._log.chain = group.chain_before or self._log.chain
        with suppress(OSError):  # else the next append() does it, or close()
            self._log.cut()
        for flush in group.flushes:
            flush.settle(RecordError(f"the store does not take it: {error}"))
        self._backlog.pop()

    def _push(self, event: Event) -> bool:
        """Whether it makes a record."""
        group = self._backlog.last()
        start = len(group.lines)
        heads: list[Head] = []
        try:
            append_line(group.lines, lambda line: heads.append(self._scribe.append(line, event)), self._log.chain)
        except Exception:
            logger.exception("an event cannot be recorded: %s", type(event).__name__)
            self._lose(1)
            return False
        group.starts.append(start)
        group.heads += heads
        return True

    def _write_group(self, num_queued: int) -> tuple[bool, int]:
        """Whether the first group is on disk, and how many are still to be encoded: meanwhile the next group was."""
        group = self._backlog.first()
        if group.heads:
            attempt = Attempt(partial(self._log.append, group.lines, group.starts))
            try:
                self._attempt_since_s = self._world.monotonic()
                if num_queued and group.chain_before is None:  # else a thread would only cost
                    group.is_closed = True
                    attempt.begin()
                    num_queued = self._encode(num_queued, len(group.lines) + self._limits.group_bytes)
                places = attempt.result()
            except OSError as error:
                if group.chain_before is not None:
                    self._take_back(group, error)
                    return True, num_queued
                self._turn_off(error)
                return False, num_queued
            finally:
                self._attempt_since_s = None
            self._turn_on()
            self._on_disk(group.heads, places)
        self._backlog.pop()
        for flush in group.flushes:
            flush.settle(self._news_of_loss() if flush.event is None else None)
        return True, num_queued

    def _turn_off(self, error: OSError) -> None:
        if self._off is None:
            logger.error("recording is off: %s", error)
        self._off = error

    def _turn_on(self) -> None:
        if self._off is not None:
            logger.warning("recording is on again")
        self._off = None

    def _record_loss(self) -> None:
        if num_lost := self.num_lost - self._num_lost_recorded:
            logger.error("%d events were lost and are not in the record", num_lost)
            self._num_lost_recorded += num_lost
            self._push(Control("recording_resumed", self._world.wall(), num_lost=num_lost, actor=SERVER))

    def _news_of_loss(self) -> RecordError | None:
        num_lost = self.num_lost - self._num_lost_told
        self._num_lost_told += num_lost
        return RecordError(f"{num_lost} events were lost") if num_lost else None

    def _lose(self, num_events: int) -> None:
        with self._loss:
            self.num_lost += num_events

    def _drop_queued(self, num_queued: int) -> None:
        for _ in range(num_queued):
            item = self._queue.popleft()
            if isinstance(item, Flush):
                self._backlog.last().flushes.append(item)
            if not isinstance(item, Flush) or (item.event is not None and not (item.when_kept or item.or_never)):
                self._lose(1)  # the others are given again

    def _not_running(self) -> RecordError:
        num_lost = self.num_lost - self._num_lost_recorded
        return RecordError(f"the record's writer has ended: {self._stopped}; {num_lost} events were lost")

    def _end(self, why: str) -> None:
        self._stopped = why if self._off is None else f"{why} while recording was off: {self._off}"
        self._drop_queued(len(self._queue))
        self._lose(self._backlog.num_lines)
        self._backlog.refuse_flushes(self._not_running())
        self._backlog.clear()
        try:
            self._log.close()
        except OSError as error:
            logger.error("closing the record: %s", error)
