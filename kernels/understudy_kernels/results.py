"""What the operations return: one tensor of [num_tokens] for each quantity, on the device of the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """One model's view of one token at each position. Logarithms are natural, so entropy is in nats.

    Attributes:
        logprob: float32; of the target. -inf for a target outside the vocabulary.
        rank: int64; 1 + the number of tokens whose logit is strictly larger than the target's; ``vocab_size + 1`` for
            a target outside the vocabulary.
        argmax: int64; the token with the largest logit, the lowest such id where logits are equal.
        max_logprob: float32; of the argmax.
        logsumexp: float32; of the logits.
        entropy: float32; of the whole distribution.
    """

    logprob: Tensor
    rank: Tensor
    argmax: Tensor
    max_logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class Divergences:
    """How two models' next-token distributions p and q differ at each position, in nats.

    Attributes:
        kl_pq: float32; KL(p || q) = sum p log(p/q), at least 0; inf where p has a token that q excludes.
        kl_qp: float32; KL(q || p).
        entropy_p: float32.
        entropy_q: float32.
        logprob_p: float32; of the target under p. -inf for a target outside the vocabulary.
        logprob_q: float32; of the target under q.
        argmax_p: int64; the lowest id where logits are equal.
        argmax_q: int64.
        agreement: bool; whether the two argmax are one.
        hellinger: float32; sqrt(1 - sum sqrt(p q)), in [0, 1].
        js: float32, or None unless asked for; Jensen-Shannon divergence, at most log 2.
        total_variation: float32, or None unless asked for; sum |p - q| / 2, at most 1.
    """

    kl_pq: Tensor
    kl_qp: Tensor
    entropy_p: Tensor
    entropy_q: Tensor
    logprob_p: Tensor
    logprob_q: Tensor
    argmax_p: Tensor
    argmax_q: Tensor
    agreement: Tensor
    hellinger: Tensor
    js: Tensor | None = None
    total_variation: Tensor | None = None


def empty_scores(num_tokens: int, device: torch.device) -> Scores:
    """To be filled."""
    floats = torch.empty(4, num_tokens, device=device)
    ids = torch.empty(2, num_tokens, dtype=torch.int64, device=device)
    return Scores(floats[0], ids[0], ids[1], floats[1], floats[2], floats[3])


def empty_divergences(num_tokens: int, device: torch.device, second_sweep: bool) -> Divergences:
    """To be filled."""
    floats = iter(torch.empty(9, num_tokens, device=device))
    ids = torch.empty(2, num_tokens, dtype=torch.int64, device=device)
    return Divergences(
        kl_pq=next(floats),
        kl_qp=next(floats),
        entropy_p=next(floats),
        entropy_q=next(floats),
        logprob_p=next(floats),
        logprob_q=next(floats),
        argmax_p=ids[0],
        argmax_q=ids[1],
        agreement=torch.empty(num_tokens, dtype=torch.bool, device=device),
        hellinger=next(floats),
        js=next(floats) if second_sweep else None,
        total_variation=next(floats) if second_sweep else None,
    )
