"""The watchdog: ends an engine process in which a challenger hangs.

It lives in the API process and looks at the flight recorder, so it sees a step that hangs in native code with the
interpreter's lock held, where no thread of the engine process could. A step that never ends cannot be taken back: in
the shared placement the way out is to end the process, with the challenger in quarantine, so that the replica comes
back without it. In the dedicated placement the process is the challenger's own.

It counts its own looks and not seconds, so that a machine that was suspended finds nobody hanging when it wakes up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from understudy.engines.flight import Activity

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
SAME_WITHIN_S = 0.1
"""Two looks at one slice: the recorder is read a moment after the clock, and this process may lose its core between."""


@dataclass
class Watch:
    """One engine process under watch.

    Args:
        look: what its driver is doing.
        has_champion: a hang of the champion's own is vLLM's business, as without a shadow.
        hang_s: what no slice of a challenger takes.
        hangs: called once with the core that hangs and why; None is the process as a whole, stopped or stuck.
    """

    look: Callable[[], Activity]
    has_champion: bool
    hang_s: float
    hangs: Callable[[int | None, str], None]
    _looks: int = field(default=0, init=False)
    _done: bool = field(default=False, init=False)
    _last: tuple[int | None, str, float] | None = field(default=None, init=False)

    def check(self, now_s: float) -> None:
        """One look, LOOK_EVERY_S after the one before."""
        seen = self.look()
        since_s = now_s - (seen.for_s if seen.core is not None else seen.silent_s)
        last, self._last = self._last, (seen.core, seen.kind, since_s)
        same = last is not None and last[:2] == self._last[:2] and abs(last[2] - since_s) < SAME_WITHIN_S
        self._looks = self._looks + 1 if same else 0
        if self._done or self._looks * LOOK_EVERY_S < self.hang_s:
            return
        champions_own = self.has_champion and not seen.core  # its step, or nobody's
        if champions_own or seen.kind == "loading":  # loading has a limit of its own
            return
        self._done = True
        what = "gave no sign of life" if seen.core is None else "was in one step"
        self.hangs(seen.core, f"{what} for {self.hang_s:g} s")


async def watch(watches: list[Watch], clock: Callable[[], float]) -> None:
    """Look for ever, whatever one look raises."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        for each in watches:
            try:
                each.check(clock())
            except Exception:  # logged: who stops looking at one lets all hang for ever
                log.exception("a look at an engine process failed")
