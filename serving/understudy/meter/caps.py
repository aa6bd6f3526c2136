"""How much the shadow may take: over any WINDOW_S it stops at its share of the device, or at its dollars an hour.

What was taken is summed over the window that ends now; the time before the server started counts as nothing taken, so
a cap of 0.3 allows 18 s at once and then 0.3 s a second. Work under way is finished, so the sum can pass the cap by
``max_concurrency`` exchanges. As the window moves on the sum falls, and the lane goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from understudy.config import Limits

WINDOW_S = 60.0


class Caps:
    """Asked by the lane before shadow work starts, told by the meter."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._taken: deque[tuple[float, float, float]] = deque()  # (when, share of the devices x seconds, usd)

    def took(self, device_fraction_s: float, usd: float | None) -> None:
        """The shadow took so many seconds of its devices (all of them: 1 a second), for so much."""
        self._taken.append((self._clock(), device_fraction_s, usd or 0.0))

    def rates(self) -> tuple[float, float]:
        """(share of the device, US dollars an hour) over the window that ends now."""
        start_s = self._clock() - WINDOW_S
        while self._taken and self._taken[0][0] <= start_s:
            self._taken.popleft()
        share = sum(one[1] for one in self._taken) / WINDOW_S
        return share, sum(one[2] for one in self._taken) / WINDOW_S * 3600

    def over(self) -> tuple[str, str] | None:
        """(the cap's name, what was taken and what is allowed) while one is reached."""
        share, usd_per_hour = self.rates()
        allowed = self._limits.max_device_share
        if allowed is not None and share >= allowed:
            return "max_device_share", f"{share:.3f} of the device over the last {WINDOW_S:.0f} s, {allowed} is allowed"
        allowed = self._limits.max_usd_per_hour
        if allowed is not None and usd_per_hour >= allowed:
            return "max_usd_per_hour", f"{usd_per_hour:.3g} USD an hour, {allowed} is allowed"
        return None
