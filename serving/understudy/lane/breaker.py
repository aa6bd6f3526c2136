"""The breaker stops shadowing on a challenger that keeps failing, says so, and tries again later."""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """Opens after ``max_faults`` faults in a row; after ``cooldown_s`` one exchange may try, and decides."""

    def __init__(self, max_faults: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._max_faults = max_faults
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._faults_in_a_row = 0
        self._opened_s: float | None = None
        self._trying = False
        self.last_fault = ""

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``trying``."""
        if self._opened_s is None:
            return "closed"
        return "trying" if self._trying else "open"

    def blocks(self) -> bool:
        """Whether nothing may run now; unlike ``admits`` it takes no turn."""
        return self._opened_s is not None and (self._trying or not self._has_cooled())

    def _has_cooled(self) -> bool:
        return self._opened_s is None or self._clock() - self._opened_s >= self._cooldown_s

    def admits(self) -> bool:
        """Whether an exchange may run now. An admitted one must report ``succeeded``, ``failed`` or ``abandoned``."""
        if self._opened_s is None:
            return True
        if self._trying or not self._has_cooled():
            return False
        self._trying = True
        return True

    def succeeded(self) -> None:
        """The exchange was compared: close."""
        self._faults_in_a_row = 0
        self._opened_s = None
        self._trying = False

    def failed(self, why: str) -> None:
        """The exchange failed or ran out of time."""
        self.last_fault = why
        self._faults_in_a_row += 1
        self._trying = False
        if self._faults_in_a_row >= self._max_faults:
            self._opened_s = self._clock()

    def abandoned(self) -> None:
        """The exchange ended for a reason that says nothing about the challenger (paused, unsupported)."""
        self._trying = False
