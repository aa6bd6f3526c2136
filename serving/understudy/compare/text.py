"""How alike are the two texts, character by character?

Indel similarity: 2 x (characters in the longest common subsequence) / (characters of both), by rapidfuzz's
bit-parallel algorithm (Hyyro 2004), O(n m / 64). What both begin and end with is set aside first; of the rest the first
``max_characters`` of each are compared, and what is beyond counts as different.
"""

from __future__ import annotations

from collections.abc import Mapping

from rapidfuzz.distance import Indel, Postfix, Prefix

from understudy.compare.base import Pair

NAMES = {
    "text_similarity": "characters that both answers have in common and in order, over all, 0 to 1",
    "text_match": "fraction of the answers that are the very same text, 0 to 1",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """In any vocabulary. Two empty answers are the same; missing ones are not."""
    if not pair.answers:
        return {}
    limit = pair.options.max_characters
    return {
        "text_similarity": pair.mean(lambda theirs, mine: similarity(theirs.text, mine.text, limit)),
        "text_match": pair.mean(lambda theirs, mine: float(theirs.text == mine.text)),
    }


def similarity(theirs: str, mine: str, limit: int) -> float:
    """In [0, 1], symmetric; 1.0 only for the same text."""
    if theirs == mine:
        return 1.0
    length = len(theirs) + len(mine)
    same, theirs, mine = differing(theirs, mine, limit)
    common = (len(theirs) + len(mine) - Indel.distance(theirs, mine)) / 2
    return 2 * (same + common) / length


def differing(theirs: str, mine: str, limit: int) -> tuple[int, str, str]:
    """How many characters both begin and end with, and the first ``limit`` of each between them."""
    first = Prefix.similarity(theirs, mine)
    theirs, mine = theirs[first:], mine[first:]
    last = Postfix.similarity(theirs, mine)
    return first + last, theirs[: len(theirs) - last][:limit], mine[: len(mine) - last][:limit]
