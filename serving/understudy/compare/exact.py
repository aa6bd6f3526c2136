"""Did the challenger give the very same tokens?"""

from __future__ import annotations

from collections.abc import Mapping

from understudy.compare.pairs import MISSING, answer_pairs
from understudy.types import Answer, Observation

NAMES = {"exact_match": "fraction of the answers whose token ids are all the champion's, 0 to 1"}


def compare(champion: Observation, challenger: Observation) -> Mapping[str, float]:
    """``exact_match`` over the answers; absent without an answer of its own or a shared vocabulary."""
    pairs = answer_pairs(champion, challenger)
    if not pairs or challenger.rendered != "token_ids":
        return {}
    return {"exact_match": sum(is_same(*pair) for pair in pairs) / len(pairs)}


def is_same(theirs: Answer, mine: Answer) -> bool:
    """Every token; an answer that is missing is the same as none, not even as an empty one."""
    return theirs is not MISSING and mine is not MISSING and theirs.token_ids == mine.token_ids
