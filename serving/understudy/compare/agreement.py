"""How far do the two answers go together, token by token?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from understudy.compare.base import Pair

NAMES = {
    "token_agreement": "fraction of positions with the same token, over the longer answer, 0 to 1",
    "first_divergence": "tokens before the first difference; the whole length where there is none",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """Means over the answers. Only where both share a vocabulary: elsewhere ids cannot be laid side by side."""
    if not pair.answers or not pair.same_vocabulary:
        return {}
    return {
        "token_agreement": pair.mean(lambda theirs, mine: agreement(theirs.token_ids, mine.token_ids)),
        "first_divergence": pair.mean(lambda theirs, mine: first_divergence(theirs.token_ids, mine.token_ids)),
    }


def agreement(theirs: Sequence[int], mine: Sequence[int]) -> float:
    """Equal positions over the longer length; 1.0 for two empty answers."""
    longest = max(len(theirs), len(mine))
    return sum(a == b for a, b in zip(theirs, mine, strict=False)) / longest if longest else 1.0


def first_divergence(theirs: Sequence[int], mine: Sequence[int]) -> int:
    """Index of the first token that differs or that one side lacks."""
    for index, (a, b) in enumerate(zip(theirs, mine, strict=False)):
        if a != b:
            return index
    return min(len(theirs), len(mine))
