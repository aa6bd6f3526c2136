"""Did the challenger give the very same tokens?"""

from __future__ import annotations

from collections.abc import Mapping

from understudy.compare.base import Pair

NAMES = {"exact_match": "fraction of the answers whose token ids are all the champion's, 0 to 1"}


def compare(pair: Pair) -> Mapping[str, float]:
    """``exact_match`` over the answers; absent without an answer of its own or a shared vocabulary.

    Two answers that were cut off at the same tokens are the same as far as was seen; length.py says that they were cut.
    """
    if not pair.answers or not pair.same_vocabulary:
        return {}
    return {"exact_match": pair.mean(lambda theirs, mine: float(theirs.token_ids == mine.token_ids))}
