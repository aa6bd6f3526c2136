"""How much the shadow may read and write: a token bucket that holds two seconds' worth."""

from __future__ import annotations

from collections.abc import Callable

BURST_S = 2.0


class TokenBudget:
    """``max_tokens_per_s`` of None is no limit."""

    def __init__(self, max_tokens_per_s: float | None, clock: Callable[[], float]) -> None:
        self._rate = max_tokens_per_s
        self._clock = clock
        self._level = 0.0 if max_tokens_per_s is None else max_tokens_per_s * BURST_S
        self._at_s = clock()

    def wait_s(self, num_tokens: int) -> float:
        """Seconds until ``num_tokens`` may be spent; 0.0 means that they were spent now.

        More than the bucket holds is spent when it is full, and paid back before the next.
        """
        if self._rate is None:
            return 0.0
        now = self._clock()
        full = self._rate * BURST_S
        self._level = min(full, self._level + (now - self._at_s) * self._rate)
        self._at_s = now
        needed = min(float(num_tokens), full)
        if self._level >= needed:
            self._level -= num_tokens
            return 0.0
        return (needed - self._level) / self._rate
