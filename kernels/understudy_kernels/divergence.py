"""divergence: how two models' next-token distributions differ at each position, without materialised logits.

With p and q the softmax of both sides' logits a and b:

    KL(p || q) = sum p (a - b) - lse(a) + lse(b)         Hellinger^2 = 1 - sum sqrt(p q)
    entropies, target logprobs and top-1 as in score.py

in one sweep over the vocabulary. Jensen-Shannon and total variation need both normalisers first, hence a second sweep:

    JS = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2   TV = sum |p - q| / 2
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy_kernels.dispatch import on, runs_kernels
from understudy_kernels.reference.divergence import divergence as reference_divergence
from understudy_kernels.results import Divergences
from understudy_kernels.source import Head, Logits, Source, check_pair, check_targets


def divergence(
    hidden_p: Tensor,
    weight_p: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    targets: Tensor,
    *,
    bias_p: Tensor | None = None,
    bias_q: Tensor | None = None,
    scale_p: float = 1.0,
    scale_q: float = 1.0,
    softcap_p: float | None = None,
    softcap_q: float | None = None,
    vocab_size: int | None = None,
    round_logits: bool = False,
    js: bool = False,
) -> Divergences:
    """Compare ``softmax(head_p(hidden_p))`` with ``softmax(head_q(hidden_q))`` at each position.

    Args:
        hidden_p: [num_tokens, hidden_size of p]; see score.
        weight_p: [padded vocab_size of p, hidden_size of p].
        hidden_q: [num_tokens, hidden_size of q]; the hidden sizes and dtypes of the sides may differ.
        weight_q: [padded vocab_size of q, hidden_size of q]; may be the same tensor as weight_p, and is then read once.
        targets: int64 [num_tokens]; see score.
        bias_p: and so on: see score.
        vocab_size: the tokens both models have, with the same ids. None: the smaller number of rows.
        round_logits: of both sides; see score.
        js: also Jensen-Shannon and total variation, at the price of a second sweep (twice the time).

    Returns:
        Divergences, float32, int64 and bool.

    Raises:
        ValueError: for shapes, dtypes or devices that do not go together, naming them.

    Memory: as for score, twice. Not differentiable.
    """
    vocab_size = min(weight_p.shape[0], weight_q.shape[0]) if vocab_size is None else vocab_size
    p = Head(hidden_p, weight_p, vocab_size, bias_p, scale_p, softcap_p, round_logits)
    q = Head(hidden_q, weight_q, vocab_size, bias_q, scale_q, softcap_q, round_logits)
    return divergence_source(p, q, targets, js)


def divergence_logits(
    logits_p: Tensor, logits_q: Tensor, targets: Tensor, *, vocab_size: int | None = None, js: bool = False
) -> Divergences:
    """The same from both sides' logits, [num_tokens, padded vocab_size]: one read of them, two with js."""
    vocab_size = min(logits_p.shape[1], logits_q.shape[1]) if vocab_size is None else vocab_size
    return divergence_source(Logits(logits_p, vocab_size), Logits(logits_q, vocab_size), targets, js)


def divergence_source(p: Source, q: Source, targets: Tensor, js: bool) -> Divergences:
    """Check, and choose by device."""
    check_pair(p, q)
    check_targets(targets, p)
    with torch.no_grad():
        if not runs_kernels(p.device):
            return reference_divergence(p, q, targets, js=js)
        from understudy_kernels.device.divergence import divergence as device_divergence

        with on(p.device):
            return device_divergence(p, q, targets, js=js)
