"""Which champion answer stands beside which challenger answer."""

from __future__ import annotations

from understudy.types import Answer, Observation

MISSING = Answer((), "", None)


def answer_pairs(champion: Observation, challenger: Observation) -> list[tuple[Answer, Answer]]:
    """(champion, challenger) answers by index. An answer that one side lacks stands beside an empty one.

    Empty when the challenger generated nothing at all, because it was not asked to.
    """
    if not challenger.answers:
        return []
    length = max(len(champion.answers), len(challenger.answers))
    theirs = champion.answers + (MISSING,) * (length - len(champion.answers))
    mine = challenger.answers + (MISSING,) * (length - len(challenger.answers))
    return list(zip(theirs, mine, strict=True))
