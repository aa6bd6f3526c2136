"""score in plain PyTorch: the CPU path. One sweep over the vocabulary, one matrix product for each tile.

Memory, whatever the vocabulary: two tiles of at most 1 MiB and 32 rows of the weight. 16-bit inputs also take 0.75 MiB
for the widened weight and as much as 256 to 512 positions' hidden states take in float32 (2 MiB up to a hidden size of
2048, then in proportion); bfloat16 with rounding takes half a tile instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy_kernels.reference.online import Online
from understudy_kernels.reference.tiles import Tiles, num_columns, row_ranges
from understudy_kernels.results import Scores, empty_scores
from understudy_kernels.source import Source


def score(source: Source, targets: Tensor) -> Scores:
    """See understudy_kernels.score.score. Arguments are checked already, and on the CPU."""
    scores = empty_scores(source.num_tokens, source.device)
    for rows in row_ranges(source):
        score_rows(source, targets[rows], rows, scores)
    return scores


def score_rows(source: Source, targets: Tensor, rows: slice, scores: Scores) -> None:
    """Fill the rows of the scores."""
    num_rows, columns = len(targets), num_columns(len(targets), source)
    tiles, online = Tiles(source, rows, columns), Online(num_rows, source.device)
    target_logits = tiles.target_logits(targets)
    num_larger = torch.zeros(num_rows, 1, device=source.device)  # float32 counts to 2^24
    buffer = torch.empty(num_rows * columns, device=source.device)
    for start in range(0, source.vocab_size, columns):
        stop = min(start + columns, source.vocab_size)
        logits = tiles.read(start, stop)
        scratch = buffer[: logits.numel()].view_as(logits)
        put_targets(logits, targets, target_logits, start, stop)
        num_larger += torch.gt(logits, target_logits, out=scratch).sum(-1, keepdim=True)
        online.raise_largest(logits, start)
        online.add(logits, scratch, keep=False)
    outside = (targets < 0) | (targets >= source.vocab_size)
    logsumexp = online.logsumexp()
    scores.logprob[rows] = target_logits[:, 0] - logsumexp
    scores.rank[rows] = (num_larger[:, 0].long() + 1).masked_fill_(outside, source.vocab_size + 1)
    scores.argmax[rows] = online.argmax
    scores.max_logprob[rows] = online.largest[:, 0] - logsumexp
    scores.logsumexp[rows] = logsumexp
    scores.entropy[rows] = online.entropy()


def put_targets(logits: Tensor, targets: Tensor, target_logits: Tensor, start: int, stop: int) -> None:
    """Make the target's logit in the tile the very number it is compared with.

    A sum in another order rounds otherwise, and the target would count as larger than itself.
    """
    (here,) = torch.where((targets >= start) & (targets < stop))
    logits[here, targets[here] - start] = target_logits[here, 0]
