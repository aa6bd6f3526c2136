"""What waits to be written: lines in groups, and those who wait until theirs is on disk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

from understudy.errors import RecordError
from understudy.record.lines import Chain
from understudy.record.schema import Event, Head

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Flush:
    """Somebody on an event loop who waits until everything before this is on disk.

    Attributes:
        loop, done: theirs.
        event: written with it, however full the queue is; they hear of its loss alone, and not of what was lost before.
        or_never: where the event cannot be written at once it is not written later either.
        when_kept: they go on as soon as the event has its room, and not when it is on disk.
    """

    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    event: Event | None = None
    or_never: bool = False
    when_kept: bool = False

    def settle(self, error: RecordError | None) -> None:
        """Let them go on, from any thread. The first time counts."""
        try:
            self.loop.call_soon_threadsafe(self._settle, error)
        except RuntimeError:
            logger.debug("the event loop that waited for a flush is closed")

    def _settle(self, error: RecordError | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


@dataclass(slots=True)
class Group:
    """Lines that are written with one fsync, and those who wait for them. A closed one takes no more.

    ``chain_before`` of an event that is written at once or never: where the chain stood, to take it back.
    """

    lines: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)
    flushes: list[Flush] = field(default_factory=list)
    is_closed: bool = False
    chain_before: Chain | None = None


class Backlog:
    """Groups in the order in which their events came. Not thread-safe.

    Args:
        group_bytes: a group as large as this is followed by a new one.
    """

    def __init__(self, group_bytes: int) -> None:
        self._group_bytes = group_bytes
        self._groups: deque[Group] = deque()
        self._num_bytes_before_last = 0

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def num_bytes(self) -> int:
        """Of all lines."""
        return self._num_bytes_before_last + (len(self._groups[-1].lines) if self._groups else 0)

    @property
    def num_lines(self) -> int:
        """In all groups."""
        return sum(len(group.heads) for group in self._groups)

    def first(self) -> Group:
        """The oldest group; it stays here."""
        return self._groups[0]

    def last(self) -> Group:
        """The group that takes the next line or flush."""
        newest = self._groups[-1] if self._groups else None
        if newest is None or newest.is_closed or len(newest.lines) >= self._group_bytes:
            self._num_bytes_before_last = self.num_bytes
            self._groups.append(Group())
        return self._groups[-1]

    def pop(self) -> None:
        """Remove the oldest group."""
        group = self._groups.popleft()
        self._num_bytes_before_last -= len(group.lines) if self._groups else 0

    def refuse_flushes(self, error: RecordError) -> None:
        """Nobody waits any longer; the lines do."""
        for group in self._groups:
            for flush in group.flushes:
                flush.settle(error)
            group.flushes.clear()

    def clear(self) -> None:
        """Remove everything."""
        self._groups.clear()
        self._num_bytes_before_last = 0
