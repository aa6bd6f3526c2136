"""Everything is accounted for (law 4): sampled = pending + compared + shed + failed + expired + cancelled.

One count is one exchange for one challenger. A Ledger belongs to one event loop and every method is one
synchronous step, so the equation holds whenever someone looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from understudy.types import Ending, State


class Counted(Protocol):
    """Counts of an earlier run."""

    @property
    def offered(self) -> int: ...  # noqa: D102
    @property
    def compared(self) -> int: ...  # noqa: D102
    @property
    def expired(self) -> int: ...  # noqa: D102
    @property
    def cancelled(self) -> int: ...  # noqa: D102
    @property
    def shed(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def failed(self) -> Mapping[str, int]: ...  # noqa: D102


class Ledger:
    """The counts of one challenger."""

    def __init__(self) -> None:
        self.offered = 0
        self.sampled = 0
        self.pending = 0
        self._states: Counter[State] = Counter()
        self._reasons: dict[State, Counter[str]] = {State.SHED: Counter(), State.FAILED: Counter()}

    def offer(self, count: int = 1) -> None:
        """An exchange reached the lane."""
        self.offered += count

    def sample(self) -> None:
        """It was chosen; from here on it must end exactly once."""
        self.sampled += 1
        self.pending += 1

    def end(self, ending: Ending) -> None:
        """It ended."""
        self.pending -= 1
        self._count(ending.state, ending.reason or "unknown", 1)

    def restore(self, counts: Counted) -> None:
        """Take over the counts of an earlier run from its record. What was pending then is not among them."""
        self.offered += counts.offered
        ended = {
            State.COMPARED: counts.compared,
            State.EXPIRED: counts.expired,
            State.CANCELLED: counts.cancelled,
        }
        for state, count in ended.items():
            self._count(state, "", count)
            self.sampled += count
        for state, reasons in ((State.SHED, counts.shed), (State.FAILED, counts.failed)):
            for reason, count in reasons.items():
                self._count(state, reason, count)
                self.sampled += count

    def counts(self) -> dict[str, Any]:
        """As status shows them."""
        return {
            "offered": self.offered,
            "sampled": self.sampled,
            "pending": self.pending,
            "compared": self._states[State.COMPARED],
            "shed": dict(self._reasons[State.SHED]),
            "failed": dict(self._reasons[State.FAILED]),
            "expired": self._states[State.EXPIRED],
            "cancelled": self._states[State.CANCELLED],
        }

    def _count(self, state: State, reason: str, count: int) -> None:
        self._states[state] += count
        if state in self._reasons and count:
            self._reasons[state][reason] += count


def total(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over challengers, in the same form."""
    summed: dict[str, Any] = Ledger().counts()
    for each in counts:
        for key, value in each.items():
            if isinstance(value, Mapping):
                summed[key] = dict(Counter(summed[key]) + Counter(value))
            else:
                summed[key] += value
    return summed
