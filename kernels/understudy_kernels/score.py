"""score: what one model says about one token at each position, without materialised logits.

For logits l [vocab_size], target y and lse = logsumexp(l):

    logprob = l[y] - lse          rank = 1 + #{v: l[v] > l[y]}
    entropy = lse - sum_v softmax(l)[v] l[v]

all in one sweep over the vocabulary (an online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867).
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy_kernels.dispatch import on, runs_kernels
from understudy_kernels.reference.score import score as reference_score
from understudy_kernels.results import Scores
from understudy_kernels.source import Head, Logits, Source, check_targets


def score(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    round_logits: bool = False,
) -> Scores:
    """Score targets under ``softmax(scale * cap(hidden @ weight.T + bias))``.

    Args:
        hidden: [num_tokens, hidden_size], bfloat16, float16 or float32; what the head is applied to, after the final
            norm. num_tokens may be 0.
        weight: [padded vocab_size, hidden_size], same dtype and device.
        targets: int64 [num_tokens]. A target outside [0, vocab_size) has logprob -inf and rank vocab_size + 1.
        bias: [padded vocab_size], any of the dtypes.
        scale: applied last.
        softcap: cap(x) = softcap * tanh(x / softcap); None for no cap.
        vocab_size: the tokens that exist, where the weight has padding rows after them. None: all rows.
        round_logits: round the product (and bias) to the inputs' dtype first, as a model's own head does. Then the
            result is about what the engine samples from (a logit that lies between two such numbers may go to the other
            one), not about the exact sums; and bfloat16 is twice as fast on a CPU that multiplies it.

    Returns:
        Scores, float32 and int64, whatever the inputs' dtype.

    Raises:
        ValueError: for shapes, dtypes or devices that do not go together, naming them.

    Memory: on the CPU a few MiB whatever the vocabulary (see reference/score.py); on a GPU a few float32 for each
    token and vocabulary split. Not differentiable.
    """
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    return score_source(Head(hidden, weight, vocab_size, bias, scale, softcap, round_logits), targets)


def score_logits(logits: Tensor, targets: Tensor, *, vocab_size: int | None = None) -> Scores:
    """The same from logits [num_tokens, padded vocab_size] that are there already: one read of them."""
    return score_source(Logits(logits, logits.shape[1] if vocab_size is None else vocab_size), targets)


def score_source(source: Source, targets: Tensor) -> Scores:
    """Check, and choose by device."""
    check_targets(targets, source)
    with torch.no_grad():
        if not runs_kernels(source.device):
            return reference_score(source, targets)
        from understudy_kernels.device.score import score as device_score

        with on(source.device):
            return device_score(source, targets)
