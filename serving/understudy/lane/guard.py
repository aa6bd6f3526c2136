"""The only place that may swallow an error, and it counts and logs what it swallows.

Everything of the shadow that touches the answer's path runs inside a guard: whatever breaks there must not
reach the user, and must not be silent either.
"""

from __future__ import annotations

import logging
from collections import Counter
from types import TracebackType

log = logging.getLogger("understudy.lane")


class Guard:
    """Counts by operation. ``swallowed`` is shown in status."""

    def __init__(self) -> None:
        self.swallowed: Counter[str] = Counter()

    def __call__(self, operation: str) -> Guarded:
        """Swallow any Exception of the ``with`` body; cancellation and exits pass."""
        return Guarded(self.swallowed, operation)


class Guarded:
    """One ``with`` body. A class, because ``__exit__`` says bool: so mypy knows that the code after it runs."""

    __slots__ = ("_operation", "_swallowed")

    def __init__(self, swallowed: Counter[str], operation: str) -> None:
        self._swallowed = swallowed
        self._operation = operation

    def __enter__(self) -> None: ...

    def __exit__(self, _: type[BaseException] | None, fault: BaseException | None, __: TracebackType | None) -> bool:
        if not isinstance(fault, Exception):
            return False
        self._swallowed[self._operation] += 1
        log.error("swallowed in %s", self._operation, exc_info=fault)
        return True
