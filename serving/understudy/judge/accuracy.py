"""Accuracy against labels: D = 1{challenger right} - 1{champion right} (McNemar's pairs). Needs feedback.

Which exchanges get a label must not depend on the answers: users who only report what went wrong report the
champion's errors, and the challenger looks better than it is.
"""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple

from understudy.judge.base import Reading, is_missing, normal
from understudy.types import Answer, Ending, Exchange, Outcome, State


class Extracted(NamedTuple):
    """What each answer said, or None where the pattern found nothing.

    ``challenger`` is None if it did not answer; ``own_fault`` tells a failure from work that was shed or
    expired.
    """

    champion: tuple[str | None, ...]
    challenger: tuple[str | None, ...] | None
    own_fault: bool


class Accuracy:
    """Group 1 of the pattern's first match is the answer. No match is wrong, never a tie.

    A challenger that failed is wrong, as it would be in the champion's place. One that was shed or expired
    was never asked in time, which is Understudy's doing: wrong when GO is claimed, right when NO-GO is. With
    n answers to a request the score is the fraction that is right.
    """

    MEANING: ClassVar[str] = "fraction of answers that match the label"
    NEEDS_LABEL: ClassVar[bool] = True
    NEEDS_FLOOR: ClassVar[bool] = False
    NEEDS_PATTERN: ClassVar[bool] = True
    DECIDES: ClassVar[bool] = True
    HIGHEST: ClassVar[float] = 1.0
    WORSE: ClassVar[str] = "the challenger is {bound} {points} points less accurate than the champion"
    BETTER: ClassVar[str] = "the challenger is {bound} {points} points more accurate than the champion"

    def __init__(self, pattern: str | None) -> None:
        self._pattern = re.compile(pattern or "(.*)", re.IGNORECASE)

    def keep(self, exchange: Exchange, ending: Ending) -> Extracted | None:
        """None where there is nothing to pair: the champion gave no answer, the challenger was only asked to score.

        And where what they said was not recorded: nobody can tell whether it was right.
        """
        if exchange.champion.outcome is not Outcome.FINISHED or not exchange.champion.answers:
            return None
        if any(answer.is_text_left_out for answer in exchange.champion.answers):
            return None
        champion = self._extract(exchange.champion.answers)
        if is_missing(ending):
            return Extracted(champion, None, ending.state in (State.FAILED, State.COMPARED))
        if ending.challenger is None or not ending.challenger.answers:
            return None
        if any(answer.is_text_left_out for answer in ending.challenger.answers):
            return None
        return Extracted(champion, self._extract(ending.challenger.answers), False)

    def read(self, kept: object, label: str | None) -> Reading | None:
        """1 for right and 0 for wrong."""
        assert isinstance(kept, Extracted)
        if label is None:
            return None
        champion = _fraction_right(kept.champion, label)
        if kept.challenger is None:
            return Reading(champion, 0.0, 0.0 if kept.own_fault else 1.0, 1.0)
        challenger = _fraction_right(kept.challenger, label)
        return Reading(champion, challenger, challenger, 0.0)

    def _extract(self, answers: tuple[Answer, ...]) -> tuple[str | None, ...]:
        matches = (self._pattern.search(answer.text) for answer in answers)
        return tuple(normal(match[1] or "") or None if match else None for match in matches)


def _fraction_right(extracted: tuple[str | None, ...], label: str) -> float:
    return sum(said == label for said in extracted) / len(extracted)
