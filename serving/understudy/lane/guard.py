"""The only place that may swallow an error, and it counts and logs what it swallows.

Everything of the shadow that touches the answer's path runs inside a guard: whatever breaks there must not
reach the user, and must not be silent either.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger("understudy.lane")


class Guard:
    """Counts by operation. ``swallowed`` is shown in status."""

    def __init__(self) -> None:
        self.swallowed: Counter[str] = Counter()
        self._lock = threading.Lock()  # comparators run in threads

    def __call__(self, operation: str) -> Guarded:
        """Swallow any Exception of the ``with`` body; cancellation and exits pass."""
        return Guarded(self._count, operation)

    def _count(self, operation: str) -> None:
        with self._lock:
            self.swallowed[operation] += 1


class Guarded:
    """One ``with`` body. A class, because ``__exit__`` says bool: so mypy knows that the code after it runs."""

    __slots__ = ("_count", "_operation")

    def __init__(self, count: Callable[[str], None], operation: str) -> None:
        self._count = count
        self._operation = operation

    def __enter__(self) -> None: ...

    def __exit__(self, _: type[BaseException] | None, fault: BaseException | None, __: TracebackType | None) -> bool:
        if not isinstance(fault, Exception):
            return False
        self._count(self._operation)
        log.error("swallowed in %s", self._operation, exc_info=fault)
        return True
