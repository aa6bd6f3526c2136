"""One side's running softmax over tiles of the vocabulary, in float32.

Sums are kept relative to the largest logit so far, m:

    s = sum exp(l - m)        u = sum exp(l - m) (l - m)

and when m grows to m', with shift = m - m' <= 0:  s' = s exp(shift),  u' = (u + s shift) exp(shift).
At the end logsumexp = m + log s and entropy = log s - u / s, in which nothing large cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = torch.finfo(torch.float32).min
"""Stands for -inf where -inf times 0 must be 0."""


class Online:
    """The sums of one side; every tensor [rows, 1]."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.largest = torch.full((num_rows, 1), float("-inf"), device=device)
        self.sum = torch.zeros(num_rows, 1, device=device)
        self.weighted = torch.zeros(num_rows, 1, device=device)
        self.argmax = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def raise_largest(self, logits: Tensor, start: int) -> Tensor:
        """Take a tile's maximum in: the argmax and the sums follow it. Returns the shift, finite and at most 0."""
        in_tile = logits.amax(-1, keepdim=True)
        (better,) = torch.where((in_tile > self.largest)[:, 0])
        if 4 * len(better) > len(logits):  # a copy of most of the tile would cost memory
            self.argmax[better] = logits.argmax(-1)[better] + start
        elif len(better):  # argmax is slow, and few rows find a new one in a later tile
            self.argmax[better] = logits[better].argmax(-1) + start
        largest = torch.maximum(self.largest, in_tile)
        shift = self.largest.sub(finite(largest)).clamp_(min=LOWEST)
        factor = shift.exp()
        self.weighted.addcmul_(self.sum, shift).mul_(factor)
        self.sum.mul_(factor)
        self.largest = largest
        return shift

    def add(self, logits: Tensor, exponentials: Tensor, *, keep: bool) -> None:
        """Add a tile after raise_largest. Leaves logits - m in ``logits``, with ``keep`` also their exp."""
        logits.sub_(finite(self.largest)).clamp_(min=LOWEST)
        torch.exp(logits, out=exponentials)
        self.sum += exponentials.sum(-1, keepdim=True)
        weighted = exponentials * logits if keep else exponentials.mul_(logits)
        self.weighted += weighted.sum(-1, keepdim=True)

    def logsumexp(self) -> Tensor:
        """[rows]."""
        return (self.largest + self.sum.log())[:, 0]

    def entropy(self) -> Tensor:
        """[rows]."""
        return (self.sum.log() - self.weighted / self.sum).clamp_(min=0)[:, 0]


def finite(largest: Tensor) -> Tensor:
    """A maximum of -inf as 0, so that -inf - (-inf) does not arise."""
    return largest.masked_fill(largest == float("-inf"), 0.0)
