"""How many sampled exchanges the challenger left unanswered: shed, failed or expired.

P(missing) <= margin is the core test of evidence.py with D = 1{challenger answered} - 1 in [-1, 0], since the
champion answered. It is then, factor by factor, the e-process of a latency SLO:
E_t = mean_k (1 + l p0)^(n-x) (1 - l(1-p0))^x with x missing of n and l < 1/(1-p0). The other side gains from
D <= 0: l < 1/p0 instead of 1/(1+p0), so that a challenger that answers nothing is found out in a few units.
"""

from __future__ import annotations

from typing import ClassVar

from understudy.judge.base import Reading, is_missing
from understudy.types import Ending, Exchange


class Missing:
    """Needs no label. What the user cancelled is not missing."""

    MEANING: ClassVar[str] = "fraction of sampled exchanges that the challenger answered"
    NEEDS_LABEL: ClassVar[bool] = False
    NEEDS_FLOOR: ClassVar[bool] = False
    NEEDS_PATTERN: ClassVar[bool] = False
    DECIDES: ClassVar[bool] = True
    HIGHEST: ClassVar[float] = 0.0
    WORSE: ClassVar[str] = "{bound} {points}% of the sampled exchanges went unanswered"
    BETTER: ClassVar[str] = WORSE  # cannot be: HIGHEST is 0

    def __init__(self, pattern: str | None) -> None:
        del pattern

    def keep(self, exchange: Exchange, ending: Ending) -> bool:
        """Whether it is missing."""
        return is_missing(ending)

    def read(self, kept: object, label: str | None) -> Reading | None:
        """1 for an answer and 0 for none."""
        answered = 0.0 if kept else 1.0
        return Reading(1.0, answered, answered, 1.0 - answered)
