"""Where did the challenger least expect what the champion said? The tokens of a scoring pass, worst first.

Knows no tokenizer. Ids are exact; the text of a token is only known where the caller brings the pieces of the answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.types import Exchange, Observation

CONTEXT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Surprise:
    """One token of the champion that the challenger did not expect.

    Attributes:
        answer: index of the champion's answer.
        position: index of the token in it.
        token_id: what the champion said.
        logprob: how likely the challenger found it, in nats.
        rank: how many tokens it found likelier, plus one.
        preferred: the token it would have said; None where that is not known.
        entropy: of its distribution there, in nats; None where that is not known.
        champion_logprob: how likely the champion found its own token; None where that is not known.
        before: ids of up to CONTEXT_TOKENS tokens before it, from the answer and, where that begins, the prompt.
        text: its own piece of text, and ``text_before`` of the answer; empty where nobody brought the pieces.
    """

    answer: int
    position: int
    token_id: int
    logprob: float
    rank: int
    preferred: int | None
    entropy: float | None
    champion_logprob: float | None
    before: tuple[int, ...]
    text: str = ""
    text_before: str = ""


def surprising(
    exchange: Exchange, challenger: Observation, limit: int = 5, pieces: Sequence[Sequence[str]] = ()
) -> list[Surprise]:
    """The ``limit`` champion tokens with the lowest log-probability that were not the challenger's first choice.

    Args:
        exchange: with the champion's answers.
        challenger: with its scores, in the same vocabulary; empty result where it has another.
        limit: how many, worst first; of equals the earlier one.
        pieces: for each answer the text of each token, where somebody could decode them.
    """
    if challenger.rendered != "token_ids":
        return []
    places = (
        (logprob, index, position)
        for index, score in enumerate(challenger.scores)
        for position, (logprob, rank) in enumerate(zip(score.logprobs, score.ranks, strict=True))
        if rank != 1
    )
    worst = heapq.nsmallest(limit, places)
    return [_surprise(exchange, challenger, index, position, pieces) for _, index, position in worst]


def _surprise(
    exchange: Exchange, challenger: Observation, index: int, position: int, pieces: Sequence[Sequence[str]]
) -> Surprise:
    answer, score = exchange.champion.answers[index], challenger.scores[index]
    own = answer.logprobs
    before = (*exchange.champion.prompt_token_ids[-CONTEXT_TOKENS:], *answer.token_ids[:position])[-CONTEXT_TOKENS:]
    texts = pieces[index] if index < len(pieces) else ()
    return Surprise(
        answer=index,
        position=position,
        token_id=answer.token_ids[position],
        logprob=score.logprobs[position],
        rank=score.ranks[position],
        preferred=score.top1[position] if score.top1 else None,
        entropy=score.entropies[position] if score.entropies else None,
        champion_logprob=own[position] if own is not None and position < len(own) else None,
        before=before,
        text=texts[position] if position < len(texts) else "",
        text_before="".join(texts[max(0, position - CONTEXT_TOKENS) : position]),
    )
