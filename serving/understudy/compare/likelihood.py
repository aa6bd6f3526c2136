"""How likely did the challenger find the champion's own tokens?"""

from __future__ import annotations

from collections.abc import Mapping

from understudy.compare.base import Pair

NAMES = {
    "champion_logprob": "mean log-probability (nats a token) of the champion's tokens under the challenger",
    "top1_agreement": "fraction of the champion's tokens that were the challenger's first choice, 0 to 1",
    "scored_tokens": "number of champion tokens that were scored",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """From the scoring pass; absent where nothing was scored."""
    challenger = pair.challenger
    logprobs = [logprob for score in challenger.scores for logprob in score.logprobs]
    ranks = [rank for score in challenger.scores for rank in score.ranks]
    if not logprobs:
        return {}
    return {
        "champion_logprob": sum(logprobs) / len(logprobs),
        "top1_agreement": sum(rank == 1 for rank in ranks) / len(ranks),
        "scored_tokens": float(len(logprobs)),
    }
