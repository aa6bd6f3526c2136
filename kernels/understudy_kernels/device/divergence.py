"""divergence on a GPU: every split's sums of both sides, and their merger; for js one more sweep.

A program holds the same block of both models' logits in registers, one after the other's matrix product, or from one
read of the weight where the heads are tied. The sums and how they follow a new maximum: reference/divergence.py.
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
    tied_block,
    transform,
)
from understudy_kernels.plan import power_of_two
from understudy_kernels.results import Divergences, empty_divergences
from understudy_kernels.source import Source, is_tied

NUM_SUMS = 13
SMALLEST = tl.constexpr(1e-30)


def divergence(p: Source, q: Source, targets: Tensor, *, js: bool) -> Divergences:
    """See understudy_kernels.divergence.divergence. Arguments are checked already, and on the GPU.

    Memory beside the result: 60 bytes for each position and split.
    """
    num_tokens, vocab_size = p.num_tokens, p.vocab_size
    found = empty_divergences(num_tokens, p.device, js)
    if num_tokens == 0:
        return found
    tied = is_tied(p, q)
    plan, of_p, of_q = run_plan(p, q, tied=tied), head_arguments(p), head_arguments(q)
    grid = plan.programs(num_tokens)
    flags = {f"{name}_P": on for name, on in of_p.flags.items()} | {f"{name}_Q": on for name, on in of_q.flags.items()}
    common = dict(
        **flags, TIED=tied, EVEN_P=of_p.is_even(plan.block_hidden), EVEN_Q=of_q.is_even(plan.block_hidden),
        WIDEN=widen(p, q), BLOCK_TOKENS=plan.block_tokens, BLOCK_VOCAB=plan.block_vocab,
        BLOCK_HIDDEN=plan.block_hidden, num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    sides = (*of_p.pointers, *of_q.pointers)
    sizes = (num_tokens, vocab_size, plan.blocks_per_split, *of_p.numbers, *of_q.numbers)
    sums = torch.empty(NUM_SUMS, plan.num_splits, num_tokens, dtype=torch.float32, device=p.device)
    argmaxes = torch.empty(2, plan.num_splits, num_tokens, dtype=torch.int32, device=p.device)
    sweep_kernel[grid](*sides, targets.contiguous(), sums, argmaxes, *sizes, **common)
    splits = power_of_two(plan.num_splits)
    block = max(1, 512 // splits)
    logsumexps = torch.empty(2, num_tokens, dtype=torch.float32, device=p.device)
    merge_kernel[(triton.cdiv(num_tokens, block),)](
        sums, argmaxes, logsumexps, found.kl_pq, found.kl_qp, found.entropy_p, found.entropy_q, found.logprob_p,
        found.logprob_q, found.hellinger, found.argmax_p, found.argmax_q, found.agreement,
        num_tokens, plan.num_splits, SPLITS=splits, BLOCK_TOKENS=block,
    )  # fmt: skip
    if found.js is not None and found.total_variation is not None:
        shares = torch.empty(2, plan.num_splits, num_tokens, dtype=torch.float32, device=p.device)
        distance_kernel[grid](*sides, logsumexps, shares, *sizes, **common)
        torch.sum(shares[0], 0, out=found.js)
        torch.sum(shares[1], 0, out=found.total_variation)
    return found


@triton.jit
def both_blocks(
    p, weight_p, bias_p, q, weight_q, bias_q, rows, columns, num_tokens, vocab_size,
    hidden_size_p, stride_p, weight_stride_p, scale_p, softcap_p,
    hidden_size_q, stride_q, weight_stride_q, scale_q, softcap_q,
    IS_HEAD_P: tl.constexpr, HAS_BIAS_P: tl.constexpr, HAS_SOFTCAP_P: tl.constexpr, ROUNDED_P: tl.constexpr,
    IS_HEAD_Q: tl.constexpr, HAS_BIAS_Q: tl.constexpr, HAS_SOFTCAP_Q: tl.constexpr, ROUNDED_Q: tl.constexpr,
    TIED: tl.constexpr, EVEN_P: tl.constexpr, EVEN_Q: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """A block of both sides' logits; -inf for tokens that do not exist."""
    if TIED:
        a, b = tied_block(
            p, q, weight_p, rows, columns, num_tokens, vocab_size, hidden_size_p, stride_p, stride_q, weight_stride_p,
            EVEN_P, WIDEN, BLOCK_TOKENS, BLOCK_VOCAB, BLOCK_HIDDEN,
        )  # fmt: skip
    elif IS_HEAD_P:
        a = head_block(
            p, weight_p, rows, columns, num_tokens, vocab_size, hidden_size_p, stride_p, weight_stride_p,
            EVEN_P, WIDEN, BLOCK_TOKENS, BLOCK_VOCAB, BLOCK_HIDDEN,
        )  # fmt: skip
        b = head_block(
            q, weight_q, rows, columns, num_tokens, vocab_size, hidden_size_q, stride_q, weight_stride_q,
            EVEN_Q, WIDEN, BLOCK_TOKENS, BLOCK_VOCAB, BLOCK_HIDDEN,
        )  # fmt: skip
    else:
        a = logits_block(p, rows, columns, num_tokens, vocab_size, stride_p)
        b = logits_block(q, rows, columns, num_tokens, vocab_size, stride_q)
    if IS_HEAD_P:
        a = transform(
            a, weight_p, bias_p, columns, vocab_size, scale_p, softcap_p, HAS_BIAS_P, HAS_SOFTCAP_P, ROUNDED_P
        )
        b = transform(
            b, weight_q, bias_q, columns, vocab_size, scale_q, softcap_q, HAS_BIAS_Q, HAS_SOFTCAP_Q, ROUNDED_Q
        )
        a = tl.where((columns < vocab_size)[None, :], a, float("-inf"))
        b = tl.where((columns < vocab_size)[None, :], b, float("-inf"))
    return a, b


@triton.jit
def sweep_kernel(
    p, weight_p, bias_p, q, weight_q, bias_q, targets, sums, argmaxes, num_tokens, vocab_size, blocks_per_split,
    hidden_size_p, stride_p, weight_stride_p, scale_p, softcap_p,
    hidden_size_q, stride_q, weight_stride_q, scale_q, softcap_q,
    IS_HEAD_P: tl.constexpr, HAS_BIAS_P: tl.constexpr, HAS_SOFTCAP_P: tl.constexpr, ROUNDED_P: tl.constexpr,
    IS_HEAD_Q: tl.constexpr, HAS_BIAS_Q: tl.constexpr, HAS_SOFTCAP_Q: tl.constexpr, ROUNDED_Q: tl.constexpr,
    TIED: tl.constexpr, EVEN_P: tl.constexpr, EVEN_Q: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """One split of the vocabulary for some positions; what the sums are, in their order, stands at the end."""
    rows, split = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS), tl.program_id(1)
    live = rows < num_tokens
    target = tl.load(targets + rows, mask=live, other=-1)
    lowest = tl.full((BLOCK_TOKENS,), float("-inf"), tl.float32)
    zero = tl.zeros((BLOCK_TOKENS,), tl.float32)
    largest_p, largest_q, target_p, target_q = lowest, lowest, lowest, lowest
    total_p, total_q, weighted_p, weighted_q = zero, zero, zero, zero
    r_pq, r_qp, h, infinite_pq, infinite_qp = zero, zero, zero, zero, zero
    argmax_p, argmax_q = tl.zeros((BLOCK_TOKENS,), tl.int32), tl.zeros((BLOCK_TOKENS,), tl.int32)
    first = split * blocks_per_split * BLOCK_VOCAB
    last = tl.minimum(first + blocks_per_split * BLOCK_VOCAB, vocab_size)
    for start in range(first, last, BLOCK_VOCAB):
        columns = start + tl.arange(0, BLOCK_VOCAB)
        a, b = both_blocks(
            p, weight_p, bias_p, q, weight_q, bias_q, rows, columns, num_tokens, vocab_size,
            hidden_size_p, stride_p, weight_stride_p, scale_p, softcap_p,
            hidden_size_q, stride_q, weight_stride_q, scale_q, softcap_q,
            IS_HEAD_P, HAS_BIAS_P, HAS_SOFTCAP_P, ROUNDED_P, IS_HEAD_Q, HAS_BIAS_Q, HAS_SOFTCAP_Q, ROUNDED_Q,
            TIED, EVEN_P, EVEN_Q, WIDEN, BLOCK_TOKENS, BLOCK_VOCAB, BLOCK_HIDDEN,
        )  # fmt: skip
        here = (columns[None, :] == target[:, None]) & (columns < vocab_size)[None, :]
        target_p = tl.maximum(target_p, tl.max(tl.where(here, a, float("-inf")), 1))
        target_q = tl.maximum(target_q, tl.max(tl.where(here, b, float("-inf")), 1))
        never_p, never_q = a == float("-inf"), b == float("-inf")
        infinite_pq = tl.maximum(infinite_pq, tl.max(tl.where(never_q & (never_p == 0), 1.0, 0.0), 1))
        infinite_qp = tl.maximum(infinite_qp, tl.max(tl.where(never_p & (never_q == 0), 1.0, 0.0), 1))

        largest_p, x, argmax_p = raise_largest(a, columns, largest_p, argmax_p)
        largest_q, y, argmax_q = raise_largest(b, columns, largest_q, argmax_q)
        a, b = above(a, largest_p[:, None]), above(b, largest_q[:, None])
        exp_a, exp_b, exp_x, exp_y = tl.exp(a), tl.exp(b), tl.exp(x), tl.exp(y)
        r_pq = (r_pq + total_p * (x - y)) * exp_x + tl.sum(exp_a * (a - b), 1)
        r_qp = (r_qp + total_q * (y - x)) * exp_y + tl.sum(exp_b * (b - a), 1)
        h = h * tl.exp(x * 0.5 + y * 0.5) + tl.sum(tl.sqrt(exp_a * exp_b), 1)
        weighted_p = (weighted_p + total_p * x) * exp_x + tl.sum(exp_a * a, 1)
        weighted_q = (weighted_q + total_q * y) * exp_y + tl.sum(exp_b * b, 1)
        total_p = total_p * exp_x + tl.sum(exp_a, 1)
        total_q = total_q * exp_y + tl.sum(exp_b, 1)
    at = split.to(tl.int64) * num_tokens + rows
    plane = tl.num_programs(1).to(tl.int64) * num_tokens
    tl.store(sums + at, largest_p, mask=live)
    tl.store(sums + plane + at, largest_q, mask=live)
    tl.store(sums + 2 * plane + at, total_p, mask=live)
    tl.store(sums + 3 * plane + at, total_q, mask=live)
    tl.store(sums + 4 * plane + at, weighted_p, mask=live)
    tl.store(sums + 5 * plane + at, weighted_q, mask=live)
    tl.store(sums + 6 * plane + at, r_pq, mask=live)
    tl.store(sums + 7 * plane + at, r_qp, mask=live)
    tl.store(sums + 8 * plane + at, h, mask=live)
    tl.store(sums + 9 * plane + at, target_p, mask=live)
    tl.store(sums + 10 * plane + at, target_q, mask=live)
    tl.store(sums + 11 * plane + at, infinite_pq, mask=live)
    tl.store(sums + 12 * plane + at, infinite_qp, mask=live)
    tl.store(argmaxes + at, argmax_p, mask=live)
    tl.store(argmaxes + plane + at, argmax_q, mask=live)


@triton.jit
def load_sum(sums, number, plane, at, there, other):
    """One of the sums of all splits, [positions, splits]."""
    return tl.load(sums + number * plane + at, mask=there, other=other)


@triton.jit
def merge_kernel(
    sums, argmaxes, logsumexps, kl_pqs, kl_qps, entropies_p, entropies_q, logprobs_p, logprobs_q, hellingers,
    top_tokens_p, top_tokens_q, agreements, num_tokens, num_splits, SPLITS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """All splits of some positions into the divergences, and both logsumexp for a second sweep."""
    rows, splits = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS), tl.arange(0, SPLITS)
    live = rows < num_tokens
    there = live[:, None] & (splits < num_splits)[None, :]
    at = splits.to(tl.int64)[None, :] * num_tokens + rows[:, None]
    plane = tl.cast(num_splits, tl.int64) * num_tokens  # an argument of 1 is a constant, and has no .to
    largest_p = load_sum(sums, 0, plane, at, there, float("-inf"))
    largest_q = load_sum(sums, 1, plane, at, there, float("-inf"))
    top_p, top_q = tl.max(largest_p, 1), tl.max(largest_q, 1)
    x, y = above(largest_p, top_p[:, None]), above(largest_q, top_q[:, None])
    exp_x, exp_y = tl.exp(x), tl.exp(y)
    total_p, total_q = load_sum(sums, 2, plane, at, there, 0.0), load_sum(sums, 3, plane, at, there, 0.0)
    weighted_p = tl.sum((load_sum(sums, 4, plane, at, there, 0.0) + total_p * x) * exp_x, 1)
    weighted_q = tl.sum((load_sum(sums, 5, plane, at, there, 0.0) + total_q * y) * exp_y, 1)
    r_pq = tl.sum((load_sum(sums, 6, plane, at, there, 0.0) + total_p * (x - y)) * exp_x, 1)
    r_qp = tl.sum((load_sum(sums, 7, plane, at, there, 0.0) + total_q * (y - x)) * exp_y, 1)
    h = tl.sum(load_sum(sums, 8, plane, at, there, 0.0) * tl.exp(x * 0.5 + y * 0.5), 1)
    target_p = tl.max(load_sum(sums, 9, plane, at, there, float("-inf")), 1)
    target_q = tl.max(load_sum(sums, 10, plane, at, there, float("-inf")), 1)
    infinite_pq = tl.max(load_sum(sums, 11, plane, at, there, 0.0), 1) > 0
    infinite_qp = tl.max(load_sum(sums, 12, plane, at, there, 0.0), 1) > 0
    total_p, total_q = tl.sum(total_p * exp_x, 1), tl.sum(total_q * exp_y, 1)

    log_p, log_q = tl.log(total_p), tl.log(total_q)
    logsumexp_p, logsumexp_q = finite(top_p) + log_p, finite(top_q) + log_q
    tl.store(logsumexps + rows, logsumexp_p, mask=live)
    tl.store(logsumexps + num_tokens + rows, logsumexp_q, mask=live)
    kl_pq, kl_qp = r_pq / total_p - log_p + log_q, r_qp / total_q - log_q + log_p
    tl.store(kl_pqs + rows, tl.where(infinite_pq, float("inf"), at_least_zero(kl_pq)), mask=live)
    tl.store(kl_qps + rows, tl.where(infinite_qp, float("inf"), at_least_zero(kl_qp)), mask=live)
    tl.store(entropies_p + rows, at_least_zero(log_p - weighted_p / total_p), mask=live)
    tl.store(entropies_q + rows, at_least_zero(log_q - weighted_q / total_q), mask=live)
    tl.store(logprobs_p + rows, target_p - logsumexp_p, mask=live)
    tl.store(logprobs_q + rows, target_q - logsumexp_q, mask=live)
    affinity = h / (tl.sqrt(total_p) * tl.sqrt(total_q))
    tl.store(hellingers + rows, tl.sqrt(at_least_zero(1 - affinity)), mask=live)
    top_token_p = merge_argmax(largest_p, top_p, tl.load(argmaxes + at, mask=there, other=0))
    top_token_q = merge_argmax(largest_q, top_q, tl.load(argmaxes + plane + at, mask=there, other=0))
    tl.store(top_tokens_p + rows, top_token_p, mask=live)
    tl.store(top_tokens_q + rows, top_token_q, mask=live)
    tl.store(agreements + rows, top_token_p == top_token_q, mask=live)


@triton.jit
def at_least_zero(x):
    """Rounding may leave a little less; NaN stays."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def distance_kernel(
    p, weight_p, bias_p, q, weight_q, bias_q, logsumexps, shares, num_tokens, vocab_size, blocks_per_split,
    hidden_size_p, stride_p, weight_stride_p, scale_p, softcap_p,
    hidden_size_q, stride_q, weight_stride_q, scale_q, softcap_q,
    IS_HEAD_P: tl.constexpr, HAS_BIAS_P: tl.constexpr, HAS_SOFTCAP_P: tl.constexpr, ROUNDED_P: tl.constexpr,
    IS_HEAD_Q: tl.constexpr, HAS_BIAS_Q: tl.constexpr, HAS_SOFTCAP_Q: tl.constexpr, ROUNDED_Q: tl.constexpr,
    TIED: tl.constexpr, EVEN_P: tl.constexpr, EVEN_Q: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """The second sweep: one split's share of Jensen-Shannon and total variation."""
    rows, split = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS), tl.program_id(1)
    live = rows < num_tokens
    logsumexp_p = tl.load(logsumexps + rows, mask=live, other=0.0)[:, None]
    logsumexp_q = tl.load(logsumexps + num_tokens + rows, mask=live, other=0.0)[:, None]
    js = tl.zeros((BLOCK_TOKENS,), tl.float32)
    total_variation = tl.zeros((BLOCK_TOKENS,), tl.float32)
    first = split * blocks_per_split * BLOCK_VOCAB
    last = tl.minimum(first + blocks_per_split * BLOCK_VOCAB, vocab_size)
    for start in range(first, last, BLOCK_VOCAB):
        columns = start + tl.arange(0, BLOCK_VOCAB)
        a, b = both_blocks(
            p, weight_p, bias_p, q, weight_q, bias_q, rows, columns, num_tokens, vocab_size,
            hidden_size_p, stride_p, weight_stride_p, scale_p, softcap_p,
            hidden_size_q, stride_q, weight_stride_q, scale_q, softcap_q,
            IS_HEAD_P, HAS_BIAS_P, HAS_SOFTCAP_P, ROUNDED_P, IS_HEAD_Q, HAS_BIAS_Q, HAS_SOFTCAP_Q, ROUNDED_Q,
            TIED, EVEN_P, EVEN_Q, WIDEN, BLOCK_TOKENS, BLOCK_VOCAB, BLOCK_HIDDEN,
        )  # fmt: skip
        prob_a, prob_b = tl.exp(a - logsumexp_p), tl.exp(b - logsumexp_q)
        total_variation += tl.sum(tl.abs(prob_a - prob_b), 1)
        prob_a = tl.where(prob_a < SMALLEST, SMALLEST, prob_a)
        prob_b = tl.where(prob_b < SMALLEST, SMALLEST, prob_b)
        mean = 0.5 * (prob_a + prob_b)
        js += tl.sum(prob_a * tl.log(prob_a / mean) + prob_b * tl.log(prob_b / mean), 1)
    at = split.to(tl.int64) * num_tokens + rows
    plane = tl.num_programs(1).to(tl.int64) * num_tokens
    tl.store(shares + at, 0.5 * js, mask=live)
    tl.store(shares + plane + at, 0.5 * total_variation, mask=live)
