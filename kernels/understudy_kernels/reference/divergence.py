"""divergence in plain PyTorch: the CPU path. One sweep over both vocabularies together, a second one for js.

Beside the two running softmaxes (online.py), whose logits relative to their maximum are a and b, it sums

    r_pq = sum exp(a) (a - b)     r_qp = sum exp(b) (b - a)     h = sum exp((a + b) / 2)

so that KL(p || q) = r_pq / s_p - log s_p + log s_q: differences are summed, not the difference of sums, which keeps
what is small exact where the models nearly agree. When the maxima grow, with shifts x and y of the two sides:
r_pq' = (r_pq + s_p (x - y)) exp(x), r_qp' = (r_qp + s_q (y - x)) exp(y), h' = h exp((x + y) / 2).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from understudy_kernels.reference.online import Online
from understudy_kernels.reference.tiles import Tiles, num_columns, row_ranges
from understudy_kernels.results import Divergences, empty_divergences
from understudy_kernels.source import Source

SMALLEST = 1e-30
"""Stands for a probability of 0 in a logarithm that is multiplied by it."""


def divergence(p: Source, q: Source, targets: Tensor, *, js: bool) -> Divergences:
    """See understudy_kernels.divergence.divergence. Arguments are checked already, and on the CPU."""
    divergences = empty_divergences(p.num_tokens, p.device, js)
    for rows in row_ranges(p, q):
        found = divergence_rows(p, q, targets[rows], rows, js)
        for name in Divergences.__slots__:
            if (column := getattr(divergences, name)) is not None:
                column[rows] = getattr(found, name)
    return divergences


def divergence_rows(p: Source, q: Source, targets: Tensor, rows: slice, js: bool) -> Divergences:
    """The same for some positions."""
    pair = Pair(p, q, targets, rows)
    for start in range(0, p.vocab_size, pair.columns):
        pair.add(start, min(start + pair.columns, p.vocab_size))
    result = pair.result()
    if not js:
        return result
    distances = torch.zeros(2, len(targets), device=p.device)
    for start in range(0, p.vocab_size, pair.columns):
        distances += pair.second_sweep(start, min(start + pair.columns, p.vocab_size))
    return replace(result, js=distances[0], total_variation=distances[1])


class Pair:
    """The running sums of both sides and of what lies between them; [rows, 1] unless said otherwise."""

    def __init__(self, p: Source, q: Source, targets: Tensor, rows: slice) -> None:
        num_rows, device = len(targets), p.device
        self.columns = num_columns(2 * num_rows, p, q)
        self._targets = targets
        self._tiles_p = Tiles(p, rows, self.columns)
        self._tiles_q = Tiles(q, rows, self.columns, self._tiles_p)
        self._p, self._q = Online(num_rows, device), Online(num_rows, device)
        self._target_p = torch.full((num_rows,), float("-inf"), device=device)  # [rows]
        self._target_q = self._target_p.clone()  # [rows]
        self._r_pq, self._r_qp, self._h = torch.zeros(3, num_rows, 1, device=device)
        self._infinite_pq, self._infinite_qp = torch.zeros(2, num_rows, dtype=torch.bool, device=device)  # [rows]
        self._buffers = torch.empty(2, num_rows * self.columns, device=device)

    def add(self, start: int, stop: int) -> None:
        """One tile of the vocabulary."""
        a, b = self._read(start, stop)
        exp_a, exp_b = (buffer[: a.numel()].view_as(a) for buffer in self._buffers)
        (here,) = torch.where((self._targets >= start) & (self._targets < stop))
        self._target_p[here] = a[here, self._targets[here] - start]
        self._target_q[here] = b[here, self._targets[here] - start]
        excluded = bool(torch.minimum(a.amin(), b.amin()) == float("-inf"))
        never_p, never_q = (a == float("-inf"), b == float("-inf")) if excluded else (None, None)

        self._shift(self._p.raise_largest(a, start), self._q.raise_largest(b, start))
        self._p.add(a, exp_a, keep=True)
        self._q.add(b, exp_b, keep=True)
        self._h += (exp_a * exp_b).sqrt_().sum(-1, keepdim=True)
        difference = a.sub_(b)
        self._r_pq += torch.linalg.vecdot(exp_a, difference)[:, None]
        self._r_qp -= torch.linalg.vecdot(exp_b, difference)[:, None]
        if never_p is not None and never_q is not None:
            self._infinite_pq |= (never_q & ~never_p).any(-1)
            self._infinite_qp |= (never_p & ~never_q).any(-1)

    def _read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Logits of p and of q; p first, because q may use its widened weight."""
        a = self._tiles_p.read(start, stop)
        return a, self._tiles_q.read(start, stop)

    def _shift(self, x: Tensor, y: Tensor) -> None:
        """Follow the maxima; each side's own sum has done so already, hence s_p (x - y) without exp(x)."""
        self._r_pq.mul_(x.exp()).addcmul_(self._p.sum, x - y)
        self._r_qp.mul_(y.exp()).addcmul_(self._q.sum, y - x)
        self._h.mul_((x / 2 + y / 2).exp_())

    def result(self) -> Divergences:
        """After the last tile; every tensor [rows]."""
        log_ratio = self._p.sum.log() - self._q.sum.log()
        kl_pq = (self._r_pq / self._p.sum - log_ratio).clamp_(min=0)[:, 0]
        kl_qp = (self._r_qp / self._q.sum + log_ratio).clamp_(min=0)[:, 0]
        affinity = self._h / (self._p.sum.sqrt() * self._q.sum.sqrt())
        return Divergences(
            kl_pq=kl_pq.masked_fill_(self._infinite_pq, float("inf")),
            kl_qp=kl_qp.masked_fill_(self._infinite_qp, float("inf")),
            entropy_p=self._p.entropy(),
            entropy_q=self._q.entropy(),
            logprob_p=self._target_p - self._p.logsumexp(),
            logprob_q=self._target_q - self._q.logsumexp(),
            argmax_p=self._p.argmax,
            argmax_q=self._q.argmax,
            agreement=self._p.argmax == self._q.argmax,
            hellinger=(1 - affinity).clamp_(min=0).sqrt_()[:, 0],
        )

    def second_sweep(self, start: int, stop: int) -> Tensor:
        """One tile's share of Jensen-Shannon and total variation, [2, rows]; after the first sweep."""
        a, b = self._read(start, stop)
        p = a.sub_(self._p.logsumexp()[:, None]).exp_().clamp_(min=SMALLEST)
        q = b.sub_(self._q.logsumexp()[:, None]).exp_().clamp_(min=SMALLEST)
        total_variation = (p - q).abs_().sum(-1)
        mean = (p + q).div_(2)
        js = torch.xlogy(p, p / mean).sum(-1) + torch.xlogy(q, q / mean).sum(-1)
        return torch.stack((js, total_variation)).div_(2)
