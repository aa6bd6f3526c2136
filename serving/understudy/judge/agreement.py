"""Token agreement with the champion's answer: D = agreement - 1. Advisory only.

Two right answers may differ, and so may two answers of the champion itself. Only the noise floor (the
champion against itself) says how much disagreement is the challenger's: above_floor.py decides by it. This one
reads every exchange, and shows a mean and an interval.
"""

from __future__ import annotations

from typing import ClassVar

from understudy.judge.base import Reading, is_missing
from understudy.types import Ending, Exchange

VALUE = "token_agreement"


class Agreement:
    """The champion agrees with itself by definition, so it scores 1."""

    MEANING: ClassVar[str] = "fraction of tokens on which the challenger agrees with the champion"
    NEEDS_LABEL: ClassVar[bool] = False
    NEEDS_FLOOR: ClassVar[bool] = False
    NEEDS_PATTERN: ClassVar[bool] = False
    DECIDES: ClassVar[bool] = False
    HIGHEST: ClassVar[float] = 0.0
    WORSE: ClassVar[str] = "{bound} {points}% of the tokens differ from the champion's"
    BETTER: ClassVar[str] = WORSE  # cannot be: HIGHEST is 0

    def __init__(self, pattern: str | None) -> None:
        del pattern

    def keep(self, exchange: Exchange, ending: Ending) -> float | None:
        """The agreement to two decimals, so that distinct values are few (evidence.py); -1 where missing."""
        if is_missing(ending):
            return -1.0
        value = ending.comparison.values.get(VALUE) if ending.comparison else None
        return None if value is None else round(min(max(float(value), 0.0), 1.0), 2)

    def read(self, kept: object, label: str | None) -> Reading | None:
        """Missing answers lie anywhere between none and full agreement."""
        assert isinstance(kept, float)
        return Reading(1.0, 0.0, 1.0, 1.0) if kept < 0 else Reading(1.0, kept, kept, 0.0)
