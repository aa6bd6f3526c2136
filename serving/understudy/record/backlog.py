"""What waits to be written: lines, and between them those who wait until everything before is on disk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

from understudy.errors import RecordError
from understudy.record.schema import Head

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One event, ready to be written."""

    line: bytes
    head: Head


@dataclass(frozen=True, slots=True, eq=False)
class Flush:
    """Somebody on an event loop who waits until everything before this is on disk."""

    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]

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


class Backlog:
    """Lines and flushes in the order in which they came. Not thread-safe."""

    def __init__(self) -> None:
        self._items: deque[Line | Flush] = deque()
        self.num_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def push(self, item: Line | Flush) -> None:
        """At the end."""
        self._items.append(item)
        self.num_bytes += _size_bytes(item)

    def first_group(self, max_bytes: int) -> list[Line | Flush]:
        """From the front, until ``max_bytes`` are reached; they stay here."""
        group: list[Line | Flush] = []
        num_bytes = 0
        for item in self._items:
            if num_bytes >= max_bytes:
                break
            group.append(item)
            num_bytes += _size_bytes(item)
        return group

    def pop(self) -> None:
        """Remove the first item."""
        self.num_bytes -= _size_bytes(self._items.popleft())

    def take_flushes(self) -> list[Flush]:
        """Remove all flushes, so that the lines alone wait on."""
        flushes = [item for item in self._items if isinstance(item, Flush)]
        self._items = deque(item for item in self._items if isinstance(item, Line))
        return flushes

    def clear(self) -> int:
        """Remove everything; how many lines that were."""
        num_lines = sum(isinstance(item, Line) for item in self._items)
        self._items.clear()
        self.num_bytes = 0
        return num_lines


def _size_bytes(item: Line | Flush) -> int:
    return len(item.line) if isinstance(item, Line) else 0
