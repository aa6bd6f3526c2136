"""How likely did the challenger find the champion's own tokens? From the scoring pass: no sampling, no judge.

The champion's own log-probabilities are those of its generation where the client asked for logprobs. For other
exchanges they are known on the noise floor's slice, where the champion scores itself (``beside_own``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from understudy.compare.base import Pair
from understudy.types import Score

NAMES = {
    "champion_logprob": "minus the mean NLL (nats a token) of the champion's tokens under the challenger",
    "top1_agreement": "fraction of the champion's tokens that were the challenger's first choice, 0 to 1",
    "first_surprise": "champion tokens before the first that was not the challenger's first choice, mean over answers",
    "least_logprob": "log-probability of the champion token that surprised the challenger most",
    "mean_entropy": "mean entropy (nats) of the challenger where the champion's tokens stand",
    "perplexity_ratio": "perplexity of the champion's tokens, the challenger's over the champion's own",
    "kl_forward": "mean KL(champion || challenger), nats a token, over the whole vocabulary",
    "kl_backward": "mean KL(challenger || champion)",
    "hellinger": "mean Hellinger distance of the two distributions, 0 to 1",
    "entropy_difference": "mean entropy of the challenger minus the champion's, nats",
    "scored_tokens": "number of champion tokens that were scored",
    "ruled_out_tokens": "of these, the ones that count as LEAST_LOGPROB: the challenger would never say them",
}
LEAST_LOGPROB = -100.0
"""Nats. What is less counts as this, minus infinity too: a mean with one of them is low, and still a number."""


def compare(pair: Pair) -> Mapping[str, float]:
    """From the scoring pass; absent where nothing was scored."""
    scores = [score for score in pair.challenger.scores if score.logprobs]
    logprobs = [clamped(logprob) for score in scores for logprob in score.logprobs]
    if not logprobs:
        return {}
    ranks = [rank for score in scores for rank in score.ranks]
    entropies = [entropy for score in scores for entropy in score.entropies]
    values = {
        "champion_logprob": sum(logprobs) / len(logprobs),
        "top1_agreement": sum(rank == 1 for rank in ranks) / len(ranks),
        "first_surprise": sum(map(first_surprise, scores)) / len(scores),
        "least_logprob": min(logprobs),
        "scored_tokens": float(len(logprobs)),
        "ruled_out_tokens": float(logprobs.count(LEAST_LOGPROB)),
    }
    if entropies:
        values["mean_entropy"] = sum(entropies) / len(entropies)
    excess = excess_nll(pair)
    if excess is not None:
        values["perplexity_ratio"] = math.exp(excess)
    return {**values, **divergence(scores)}


def beside_own(own: Mapping[str, float], challengers: Mapping[str, float]) -> Mapping[str, float]:
    """The challenger's numbers with a perplexity ratio, where both models read the very same tokens.

    Args:
        own: the champion's numbers on its own answer, from the noise floor.
        challengers: the challenger's on the same answer and in the same vocabulary.
    """
    known = "perplexity_ratio" in challengers or not {"champion_logprob", "scored_tokens"} <= own.keys()
    if known or own["scored_tokens"] != challengers.get("scored_tokens"):
        return challengers
    mine = challengers.get("champion_logprob")  # absent where one of them was no number
    if mine is None:
        return challengers
    return {**challengers, "perplexity_ratio": math.exp(own["champion_logprob"] - mine)}


def clamped(logprob: float) -> float:
    """At least LEAST_LOGPROB; what is no number stays none."""
    return max(logprob, LEAST_LOGPROB)


def divergence(scores: Sequence[Score]) -> Mapping[str, float]:
    """Means over the tokens where both whole distributions were compared; absent where none was."""
    apart = [(score, score.divergence) for score in scores if score.divergence is not None]
    count = sum(len(one.kl_forward) for _, one in apart)
    if not count:
        return {}
    gained = sum(sum(score.entropies) - sum(one.champion_entropies) for score, one in apart)
    return {
        "kl_forward": sum(sum(one.kl_forward) for _, one in apart) / count,
        "kl_backward": sum(sum(one.kl_backward) for _, one in apart) / count,
        "hellinger": sum(sum(one.hellinger) for _, one in apart) / count,
        "entropy_difference": gained / count,
    }


def first_surprise(score: Score) -> int:
    """Index of the first token that was not the first choice; the whole length where all were."""
    return next((index for index, rank in enumerate(score.ranks) if rank != 1), len(score.ranks))


def excess_nll(pair: Pair) -> float | None:
    """Mean over tokens of champion's own minus challenger's log-probability; None where the own ones are not known."""
    if not pair.same_vocabulary:
        return None
    excess = [
        clamped(own) - clamped(theirs)
        for answer, score in zip(pair.champion.answers, pair.challenger.scores, strict=False)
        for own, theirs in zip(answer.logprobs or (), score.logprobs, strict=False)
    ]
    return sum(excess) / len(excess) if excess else None
