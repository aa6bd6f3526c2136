"""Reads a source's logits as small float32 tiles, in buffers that are used again.

A tile has at most MAX_ROWS positions and so many tokens of the vocabulary that a buffer of it takes about
TILE_BYTES: it stays in the caches while a dozen passes go over it, and the vocabulary's size no longer matters for
memory. Weights of 16 bits are widened tile by tile, because PyTorch's CPU matmul would round its float32 sums to the
inputs' dtype; where rounding is asked for, bfloat16 is multiplied as it is, which is twice as fast.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from understudy_kernels.source import Head, Logits, Source, is_tied

MAX_ROWS = 512
TILE_BYTES = 1 << 20
WIDENED_BYTES = 3 << 18
HIDDEN_BYTES = 1 << 21
MIN_WIDENED_ROWS = 256
TARGET_ROWS = 32
MIN_COLUMNS = 64


def row_ranges(*sources: Source) -> Iterator[slice]:
    """The positions, MAX_ROWS at a time; fewer where their hidden states would take much when widened.

    Not fewer than MIN_WIDENED_ROWS: the weight is widened anew for each range.
    """
    num_rows, num_tokens = MAX_ROWS, sources[0].num_tokens
    for source in sources:
        if isinstance(source, Head) and widens(source):
            fit = HIDDEN_BYTES // (4 * max(1, source.hidden.shape[1]))
            num_rows = min(num_rows, max(MIN_WIDENED_ROWS, fit))
    for start in range(0, num_tokens, num_rows):
        yield slice(start, min(start + num_rows, num_tokens))


def num_columns(num_rows: int, *sources: Source) -> int:
    """Tokens of the vocabulary in one tile."""
    columns = TILE_BYTES // (4 * num_rows)
    for source in sources:
        if isinstance(source, Head) and widens(source):
            columns = min(columns, WIDENED_BYTES // (4 * max(1, source.weight.shape[1])))
    return min(max(columns, MIN_COLUMNS), sources[0].vocab_size)


class Tiles:
    """The logits of some positions of one source, tile after tile. Each read overwrites the one before."""

    def __init__(self, source: Source, rows: slice, columns: int, widened_by: Tiles | None = None) -> None:
        self._source = source
        self._rows = rows
        self._num_rows = rows.stop - rows.start
        self._buffer = torch.empty(self._num_rows * columns, dtype=torch.float32, device=source.device)
        self._hidden: Tensor | None = None
        self._widened: Tensor | None = None
        self._narrow: Tensor | None = None
        self._tied = widened_by if widened_by is not None and is_tied(source, widened_by._source) else None
        if isinstance(source, Head):
            self._hidden = source.hidden[rows]
            if multiplies_bfloat16(source):
                self._narrow = torch.empty(len(self._buffer), dtype=torch.bfloat16, device=source.device)
            else:
                self._hidden = self._hidden.float()
            if self._tied is None and widens(source):
                self._widened = torch.empty(columns, source.weight.shape[1], dtype=torch.float32, device=source.device)

    def read(self, start: int, stop: int) -> Tensor:
        """Logits [rows, stop - start] of the tokens start..stop, yours to change until the next read."""
        tile = self._buffer[: self._num_rows * (stop - start)].view(self._num_rows, stop - start)
        if isinstance(self._source, Logits):
            return tile.copy_(self._source.logits[self._rows, start:stop])
        bias = None if self._source.bias is None else self._source.bias[start:stop]
        assert self._hidden is not None
        if self._narrow is None:
            torch.mm(self._hidden, self._weight(start, stop).t(), out=tile)
            return transform(tile, bias, self._source)
        narrow, weight = self._narrow[: tile.numel()].view_as(tile), self._source.weight[start:stop].t()
        if bias is None:
            torch.mm(self._hidden, weight, out=narrow)
        else:
            torch.addmm(bias.to(narrow.dtype), self._hidden, weight, out=narrow)
        return cap_and_scale(tile.copy_(narrow), self._source)

    def _weight(self, start: int, stop: int) -> Tensor:
        """Rows of the weight as float32; of a tied pair, the second uses what the first has widened just before."""
        assert isinstance(self._source, Head)
        weight = self._source.weight[start:stop]
        if weight.dtype == torch.float32:
            return weight
        if self._tied is not None:
            assert self._tied._widened is not None
            return self._tied._widened[: stop - start]
        assert self._widened is not None
        return self._widened[: stop - start].copy_(weight)

    def target_logits(self, targets: Tensor) -> Tensor:
        """The target's logit at each position [rows, 1], without a sweep; -inf for a target outside the vocabulary."""
        inside = (targets >= 0) & (targets < self._source.vocab_size)
        ids = torch.where(inside, targets, 0)
        if isinstance(self._source, Logits):
            logits = self._source.logits[self._rows].gather(1, ids[:, None]).float()
        else:
            logits = self._dot(ids)[:, None]
            bias = self._source.bias
            logits = transform(logits, None if bias is None else bias[ids][:, None], self._source)
        return logits.masked_fill(~inside[:, None], float("-inf"))

    def _dot(self, ids: Tensor) -> Tensor:
        """Each position's hidden state times its own row of the weight."""
        assert isinstance(self._source, Head)
        assert self._hidden is not None
        dots = torch.empty(self._num_rows, dtype=torch.float32, device=ids.device)
        for start in range(0, self._num_rows, TARGET_ROWS):
            some = slice(start, start + TARGET_ROWS)
            rows = self._source.weight[ids[some]].float()
            torch.sum(rows.mul_(self._hidden[some]), -1, out=dots[some])
        return dots


def multiplies_bfloat16(head: Head) -> bool:
    """Whether the product is taken in bfloat16 and rounded, because that is wanted, and fast here."""
    if not head.rounded or head.weight.dtype != torch.bfloat16:
        return False
    return head.device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widens(head: Head) -> bool:
    """Whether the weight goes to float32, tile by tile. float16 does: multiplied as it is it is slower on a CPU."""
    return head.weight.dtype != torch.float32 and not multiplies_bfloat16(head)


def transform(logits: Tensor, bias: Tensor | None, head: Head) -> Tensor:
    """What comes after the matrix product, in place: bias, rounding, softcap, scale."""
    if bias is not None:
        logits.add_(bias)
    if head.rounded:
        logits.copy_(logits.to(head.weight.dtype))
    return cap_and_scale(logits, head)


def cap_and_scale(logits: Tensor, head: Head) -> Tensor:
    """The rest of it."""
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    return logits
