"""score on a GPU, in three launches: the targets' logits; every split's sums; their merger.

The targets' logits come first because the rank is counted in the same sweep. The sweep puts them in place of what the
matrix product finds for the target: in another order of summation the target could be larger than itself.
"""

# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.device.arguments import head_arguments, run_plan, widen
from understudy_kernels.device.blocks import (
    above,
    finite,
    head_block,
    logits_block,
    merge_argmax,
    raise_largest,
    transform,
)
from understudy_kernels.plan import power_of_two
from understudy_kernels.results import Scores, empty_scores
from understudy_kernels.source import Source

BLOCK_TARGET = 1024


def score(source: Source, targets: Tensor) -> Scores:
    """See understudy_kernels.score.score. Arguments are checked already, and on the GPU.

    Memory beside the result: 24 bytes for each position and split, and 4 for each position.
    """
    num_tokens, vocab_size = source.num_tokens, source.vocab_size
    scores = empty_scores(num_tokens, source.device)
    if num_tokens == 0:
        return scores
    plan, head = run_plan(source), head_arguments(source)
    targets = targets.contiguous()
    target_logits = torch.empty(num_tokens, dtype=torch.float32, device=source.device)
    target_kernel[(num_tokens,)](
        *head.pointers, targets, target_logits, vocab_size, *head.numbers, **head.flags, BLOCK=BLOCK_TARGET
    )
    sums = torch.empty(4, plan.num_splits, num_tokens, dtype=torch.float32, device=source.device)
    argmaxes = torch.empty(plan.num_splits, num_tokens, dtype=torch.int32, device=source.device)
    sweep_kernel[plan.programs(num_tokens)](
        *head.pointers, targets, target_logits, sums, argmaxes, num_tokens, vocab_size, plan.blocks_per_split,
        *head.numbers, **head.flags, EVEN=head.is_even(plan.block_hidden), WIDEN=widen(source),
        BLOCK_TOKENS=plan.block_tokens, BLOCK_VOCAB=plan.block_vocab, BLOCK_HIDDEN=plan.block_hidden,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    splits = power_of_two(plan.num_splits)
    block = max(1, 1024 // splits)
    merge_kernel[(triton.cdiv(num_tokens, block),)](
        sums, argmaxes, targets, target_logits, scores.logprob, scores.rank, scores.argmax, scores.max_logprob,
        scores.logsumexp, scores.entropy, num_tokens, vocab_size, plan.num_splits, SPLITS=splits, BLOCK_TOKENS=block,
    )  # fmt: skip
    return scores


@triton.jit
def target_kernel(
    hidden, weight, bias, targets, target_logits, vocab_size, hidden_size, hidden_stride, weight_stride, scale, softcap,
    IS_HEAD: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, ROUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The logit of one position's target; -inf where the vocabulary does not have it."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    inside = (target >= 0) & (target < vocab_size)
    token = tl.where(inside, target, 0)
    if IS_HEAD:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, hidden_size, BLOCK):
            inner = start + tl.arange(0, BLOCK)
            h = tl.load(hidden + row * hidden_stride + inner, mask=inner < hidden_size, other=0.0)
            w = tl.load(weight + token * weight_stride + inner, mask=inner < hidden_size, other=0.0)
            total += h.to(tl.float32) * w.to(tl.float32)
        logit = tl.sum(total, 0)
        if HAS_BIAS:
            logit += tl.load(bias + token).to(tl.float32)
        logit = transform(logit, weight, bias, token, vocab_size, scale, softcap, False, HAS_SOFTCAP, ROUNDED)
    else:
        logit = tl.load(hidden + row * hidden_stride + token).to(tl.float32)
    tl.store(target_logits + row, tl.where(inside, logit, float("-inf")))


@triton.jit
def sweep_kernel(
    hidden, weight, bias, targets, target_logits, sums, argmaxes, num_tokens, vocab_size, blocks_per_split,
    hidden_size, hidden_stride, weight_stride, scale, softcap,
    IS_HEAD: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, ROUNDED: tl.constexpr,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """One split of the vocabulary for some positions. sums: largest, sum, weighted, number of larger logits."""
    rows, split = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS), tl.program_id(1)
    live = rows < num_tokens
    target = tl.load(targets + rows, mask=live, other=-1)
    target = tl.where((target >= 0) & (target < vocab_size), target, -1).to(tl.int32)  # of 2**32 + k, k is left
    target_logit = tl.load(target_logits + rows, mask=live, other=0.0)
    largest = tl.full((BLOCK_TOKENS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_TOKENS,), tl.float32)
    weighted = tl.zeros((BLOCK_TOKENS,), tl.float32)
    num_larger = tl.zeros((BLOCK_TOKENS,), tl.float32)
    argmax = tl.zeros((BLOCK_TOKENS,), tl.int32)
    first = split * blocks_per_split * BLOCK_VOCAB
    last = tl.minimum(first + blocks_per_split * BLOCK_VOCAB, vocab_size)
    for start in range(first, last, BLOCK_VOCAB):
        columns = start + tl.arange(0, BLOCK_VOCAB)
        if IS_HEAD:
            product = head_block(
                hidden, weight, rows, columns, num_tokens, vocab_size, hidden_size, hidden_stride, weight_stride,
                EVEN, WIDEN, BLOCK_TOKENS, BLOCK_VOCAB, BLOCK_HIDDEN,
            )  # fmt: skip
            logits = transform(
                product, weight, bias, columns, vocab_size, scale, softcap, HAS_BIAS, HAS_SOFTCAP, ROUNDED
            )
            logits = tl.where((columns < vocab_size)[None, :], logits, float("-inf"))
        else:
            logits = logits_block(hidden, rows, columns, num_tokens, vocab_size, hidden_stride)
        logits = tl.where(columns[None, :] == target[:, None], target_logit[:, None], logits)
        num_larger += tl.sum(tl.where(logits > target_logit[:, None], 1.0, 0.0), 1)
        largest, shift, argmax = raise_largest(logits, columns, largest, argmax)
        relative = above(logits, largest[:, None])
        exponentials = tl.exp(relative)
        weighted = (weighted + total * shift) * tl.exp(shift) + tl.sum(exponentials * relative, 1)
        total = total * tl.exp(shift) + tl.sum(exponentials, 1)
    at = split.to(tl.int64) * num_tokens + rows
    plane = tl.num_programs(1).to(tl.int64) * num_tokens
    tl.store(sums + at, largest, mask=live)
    tl.store(sums + plane + at, total, mask=live)
    tl.store(sums + 2 * plane + at, weighted, mask=live)
    tl.store(sums + 3 * plane + at, num_larger, mask=live)
    tl.store(argmaxes + at, argmax, mask=live)


@triton.jit
def merge_kernel(
    sums, argmaxes, targets, target_logits, logprobs, ranks, top_tokens, max_logprobs, logsumexps, entropies,
    num_tokens, vocab_size, num_splits, SPLITS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """All splits of some positions into the scores."""
    rows, splits = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS), tl.arange(0, SPLITS)
    live = rows < num_tokens
    there = live[:, None] & (splits < num_splits)[None, :]
    at = splits.to(tl.int64)[None, :] * num_tokens + rows[:, None]
    plane = tl.cast(num_splits, tl.int64) * num_tokens  # an argument of 1 is a constant, and has no .to
    largest = tl.load(sums + at, mask=there, other=float("-inf"))
    total = tl.load(sums + plane + at, mask=there, other=0.0)
    weighted = tl.load(sums + 2 * plane + at, mask=there, other=0.0)
    num_larger = tl.sum(tl.load(sums + 3 * plane + at, mask=there, other=0.0), 1)
    argmax = tl.load(argmaxes + at, mask=there, other=0)

    top = tl.max(largest, 1)
    shift = above(largest, top[:, None])
    weighted = tl.sum((weighted + total * shift) * tl.exp(shift), 1)
    total = tl.sum(total * tl.exp(shift), 1)
    logsumexp = finite(top) + tl.log(total)
    target = tl.load(targets + rows, mask=live, other=0)
    outside = (target < 0) | (target >= vocab_size)
    logit = tl.load(target_logits + rows, mask=live, other=0.0)
    tl.store(logprobs + rows, logit - logsumexp, mask=live)
    tl.store(ranks + rows, tl.where(outside, vocab_size + 1, 1 + num_larger.to(tl.int64)), mask=live)
    tl.store(top_tokens + rows, merge_argmax(largest, top, argmax), mask=live)
    tl.store(max_logprobs + rows, top - logsumexp, mask=live)
    tl.store(logsumexps + rows, logsumexp, mask=live)
    entropy = tl.log(total) - weighted / total
    tl.store(entropies + rows, tl.where(entropy < 0, 0.0, entropy), mask=live)
