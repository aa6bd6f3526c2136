"""Which champion answer stands beside which challenger answer."""

from __future__ import annotations

from understudy.types import Answer, Observation, Outcome

MISSING = Answer((), "", None)
"""Known by identity: an answer that is empty is one all the same."""


def answer_pairs(champion: Observation, challenger: Observation) -> list[tuple[Answer, Answer]]:
    """(champion, challenger) answers by index. One that a side lacks, or that failed half-way, is ``MISSING``.

    Empty when the challenger generated nothing because it was not asked to.
    """
    if not challenger.answers and challenger.outcome is Outcome.FINISHED:
        return []
    theirs, mine = given(champion), given(challenger)
    length = max(len(champion.answers), len(challenger.answers), 1)
    theirs += (MISSING,) * (length - len(theirs))
    mine += (MISSING,) * (length - len(mine))
    return list(zip(theirs, mine, strict=True))


def given(seen: Observation) -> tuple[Answer, ...]:
    """The answers of a model that finished; half of an answer is none."""
    return seen.answers if seen.outcome is Outcome.FINISHED else ()


def has_missing(pair: tuple[Answer, Answer]) -> bool:
    """Whether either side is missing."""
    return pair[0] is MISSING or pair[1] is MISSING
