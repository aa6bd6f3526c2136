"""Agreement above the noise floor: D = 1{P' != P} - 1{C != P}, over the exchanges chosen for the floor.

P is the champion's answer, P' its second answer to the same request, C the challenger's. Where the champion's own
second answer differs as often as the challenger's, D is 0 on average and nothing is held against the challenger. The
test is the core test of evidence.py. Answers are the same where every token is.

Of a chosen exchange without P' nothing can be said, and it is left out, unless the challenger owes an answer: that
counts as a difference where GO is claimed.
"""

from __future__ import annotations

from typing import ClassVar

from understudy.judge.base import Reading, is_missing
from understudy.types import Comparison, Ending, Exchange

VALUE = "exact_match"


class AboveFloor:
    """Both sides score 1 where they give the champion's first answer again."""

    MEANING: ClassVar[str] = "fraction of exchanges answered as the champion did, beside the champion asked again"
    NEEDS_LABEL: ClassVar[bool] = False
    NEEDS_FLOOR: ClassVar[bool] = True
    NEEDS_PATTERN: ClassVar[bool] = False
    DECIDES: ClassVar[bool] = True
    HIGHEST: ClassVar[float] = 1.0
    WORSE: ClassVar[str] = "it differs from the champion {bound} {points} points more often than the champion itself"
    BETTER: ClassVar[str] = "it differs from the champion {bound} {points} points less often than the champion itself"

    def __init__(self, pattern: str | None) -> None:
        del pattern

    def keep(self, exchange: Exchange, ending: Ending) -> tuple[float | None, float | None] | None:
        """(the champion's second answer is the first, the challenger's is); None for what is not known."""
        del exchange
        if ending.floor is None:
            return None
        own = same(ending.floor.comparison)
        if is_missing(ending):
            return own, None
        challengers = same(ending.comparison)
        return None if own is None or challengers is None else (own, challengers)

    def read(self, kept: object, label: str | None) -> Reading | None:
        """A missing answer lies anywhere between no answer and the same one."""
        del label
        assert isinstance(kept, tuple)
        own, challengers = kept
        if challengers is None:
            return Reading(1.0 if own is None else own, 0.0, 1.0, 1.0)
        return Reading(own, challengers, challengers, 0.0)


def same(comparison: Comparison | None) -> float | None:
    """1 where every answer has the same tokens, else 0."""
    value = None if comparison is None else comparison.values.get(VALUE)
    return None if value is None else float(value >= 1.0)
