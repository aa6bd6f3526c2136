"""How many tokens did each model read and write? Each in its own vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from understudy.compare.base import Pair

NAMES = {
    "tokens_ratio": "tokens that the challenger generated over the champion's; absent where either generated none",
    "champion_tokens": "tokens that the champion generated, over all answers, also those of an answer that failed",
    "challenger_tokens": "the same of the challenger's",
    "champion_prompt_tokens": "tokens of the prompt in the champion's vocabulary",
    "challenger_prompt_tokens": "the same in the challenger's",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """Absent where the challenger was not asked to answer."""
    if not pair.answers:
        return {}
    theirs, mine = pair.champion.num_generated_tokens, pair.challenger.num_generated_tokens
    values = {
        "champion_tokens": float(theirs),
        "challenger_tokens": float(mine),
        "champion_prompt_tokens": float(len(pair.champion.prompt_token_ids)),
        "challenger_prompt_tokens": float(len(pair.challenger.prompt_token_ids)),
    }
    return values | ({"tokens_ratio": mine / theirs} if theirs and mine else {})
