"""The only place that may swallow an error, and it counts and logs what it swallows.

Everything of the shadow that touches the answer's path runs inside a guard: whatever breaks there must not
reach the user, and must not be silent either.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("understudy.lane")


class Guard:
    """Counts by operation. ``swallowed`` is shown in status."""

    def __init__(self) -> None:
        self.swallowed: Counter[str] = Counter()

    @contextmanager
    def __call__(self, operation: str) -> Iterator[None]:
        """Swallow any Exception of the body; cancellation and exits pass."""
        try:
            yield
        except Exception:
            self.swallowed[operation] += 1
            log.exception("swallowed in %s", operation)
