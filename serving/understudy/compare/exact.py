"""Did the challenger give the very same tokens?"""

from __future__ import annotations

from collections.abc import Mapping

from understudy.compare.pairs import answer_pairs
from understudy.types import Observation

NAMES = {"exact_match": "fraction of the answers whose token ids are all the champion's, 0 to 1"}


def compare(champion: Observation, challenger: Observation) -> Mapping[str, float]:
    """``exact_match`` over the answers; absent without an answer of its own or a shared vocabulary."""
    pairs = answer_pairs(champion, challenger)
    if not pairs or challenger.rendered != "token_ids":
        return {}
    return {"exact_match": sum(theirs.token_ids == mine.token_ids for theirs, mine in pairs) / len(pairs)}
