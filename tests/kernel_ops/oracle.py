"""What the operations must return, computed the obvious way in float64 with every logit there at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Side:
    """One model's hidden states and head."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, vocab_size: int) -> Tensor:
        logits = self.hidden.double() @ self.weight[:vocab_size].double().T
        if self.bias is not None:
            logits = logits + self.bias[:vocab_size].double()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return self.scale * logits

    def to(self, device: str) -> Side:
        bias = None if self.bias is None else self.bias.to(device)
        return Side(self.hidden.to(device), self.weight.to(device), bias, self.scale, self.softcap)


def score(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """From float64 logits [num_tokens, vocab_size]."""
    num_tokens, vocab_size = logits.shape
    inside = (targets >= 0) & (targets < vocab_size)
    logprobs = logits.log_softmax(-1)
    target = logits.gather(1, targets.where(inside, 0)[:, None]).masked_fill(~inside[:, None], -torch.inf)
    logsumexp = logits.logsumexp(-1)
    rank = 1 + (logits > target).sum(-1)
    return {
        "logprob": target[:, 0] - logsumexp,
        "rank": rank.where(inside, vocab_size + 1),
        "argmax": logits.argmax(-1) if num_tokens else targets,
        "max_logprob": logprobs.amax(-1),
        "logsumexp": logsumexp,
        "entropy": entropy(logprobs),
    }


def divergence(a: Tensor, b: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """From both sides' float64 logits."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_mean = ((p + q) / 2).log()
    of_p, of_q = score(a, targets), score(b, targets)
    return {
        "kl_pq": relative_entropy(log_p, log_q),
        "kl_qp": relative_entropy(log_q, log_p),
        "entropy_p": of_p["entropy"],
        "entropy_q": of_q["entropy"],
        "logprob_p": of_p["logprob"],
        "logprob_q": of_q["logprob"],
        "argmax_p": of_p["argmax"],
        "argmax_q": of_q["argmax"],
        "agreement": of_p["argmax"] == of_q["argmax"],
        "hellinger": (1 - (p * q).sqrt().sum(-1)).clamp(min=0).sqrt(),
        "js": (relative_entropy(log_p, log_mean) + relative_entropy(log_q, log_mean)) / 2,
        "total_variation": (p - q).abs().sum(-1) / 2,
    }


def entropy(logprobs: Tensor) -> Tensor:
    return -torch.where(logprobs.isneginf(), 0.0, logprobs.exp() * logprobs).sum(-1)


def relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(-1)
