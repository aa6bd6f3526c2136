"""What the kernels are made of: a block of logits, and one side's running softmax.

The sums and their algebra are those of reference/online.py. A token that does not exist, or that a side excludes, has
the logit -inf; LOWEST stands for it where it is multiplied by 0. Comparisons, not maxima, pick it out, because a
maximum would swallow NaN, and NaN inputs must show.
"""

# Names in capitals are compile-time constants, as is usual in Triton.
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def head_block(
    hidden, weight, rows, columns, num_tokens, vocab_size, hidden_size, hidden_stride, weight_stride,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """hidden @ weight.T for some positions and tokens, float32 [BLOCK_TOKENS, BLOCK_VOCAB]."""
    inner = tl.arange(0, BLOCK_HIDDEN)
    # Rows past the end read the last one: no masks in the inner loop, and nobody looks at the result.
    hiddens = hidden + tl.minimum(rows, num_tokens - 1).to(tl.int64)[:, None] * hidden_stride + inner[None, :]
    weights = weight + tl.minimum(columns, vocab_size - 1).to(tl.int64)[None, :] * weight_stride + inner[:, None]
    product = tl.zeros((BLOCK_TOKENS, BLOCK_VOCAB), tl.float32)
    for start in range(0, hidden_size, BLOCK_HIDDEN):
        if EVEN:
            h, w = tl.load(hiddens + start), tl.load(weights + start)
        else:
            there = inner < hidden_size - start
            h = tl.load(hiddens + start, mask=there[None, :], other=0.0)
            w = tl.load(weights + start, mask=there[:, None], other=0.0)
        product = dot(h, w, product, WIDEN)
    return product


@triton.jit
def tied_block(
    hidden_p, hidden_q, weight, rows, columns, num_tokens, vocab_size, hidden_size, stride_p, stride_q, weight_stride,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Two products with one weight, which is read once."""
    inner = tl.arange(0, BLOCK_HIDDEN)
    row = tl.minimum(rows, num_tokens - 1).to(tl.int64)[:, None]
    hiddens_p = hidden_p + row * stride_p + inner[None, :]
    hiddens_q = hidden_q + row * stride_q + inner[None, :]
    weights = weight + tl.minimum(columns, vocab_size - 1).to(tl.int64)[None, :] * weight_stride + inner[:, None]
    product_p = tl.zeros((BLOCK_TOKENS, BLOCK_VOCAB), tl.float32)
    product_q = tl.zeros((BLOCK_TOKENS, BLOCK_VOCAB), tl.float32)
    for start in range(0, hidden_size, BLOCK_HIDDEN):
        if EVEN:
            p, q, w = tl.load(hiddens_p + start), tl.load(hiddens_q + start), tl.load(weights + start)
        else:
            there = inner < hidden_size - start
            p = tl.load(hiddens_p + start, mask=there[None, :], other=0.0)
            q = tl.load(hiddens_q + start, mask=there[None, :], other=0.0)
            w = tl.load(weights + start, mask=there[:, None], other=0.0)
        product_p = dot(p, w, product_p, WIDEN)
        product_q = dot(q, w, product_q, WIDEN)
    return product_p, product_q


@triton.jit
def dot(h, w, product, WIDEN: tl.constexpr):
    """product + h @ w. float32 stays float32 ("ieee"): TF32 would keep 10 bits of the inputs.

    WIDEN: under Triton's interpreter, whose product of bfloat16 is wrong.
    """
    if WIDEN:
        h, w = h.to(tl.float32), w.to(tl.float32)
    return tl.dot(h, w, product, input_precision="ieee")


@triton.jit
def transform(
    product, weight, bias, columns, vocab_size, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """What comes after the product: bias, rounding to the weight's dtype, softcap, scale."""
    if HAS_BIAS:
        product += tl.load(bias + tl.minimum(columns, vocab_size - 1)).to(tl.float32)[None, :]
    if ROUNDED:
        product = product.to(weight.dtype.element_ty).to(tl.float32)
    if HAS_SOFTCAP:
        product = softcap * tanh(product / softcap)
    return product * scale


@triton.jit
def tanh(x):
    """To 1e-7, absolute and, near 0, relative. The series meets the exponential form at 1/4."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -far, far))


@triton.jit
def logits_block(logits, rows, columns, num_tokens, vocab_size, stride):
    """Logits that are there already, as float32."""
    there = (rows < num_tokens)[:, None] & (columns < vocab_size)[None, :]
    at = logits + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(at, mask=there, other=float("-inf")).to(tl.float32)


@triton.jit
def above(logits, largest):
    """logits - largest, with LOWEST for -inf, from which two numbers of opposite sign may come too."""
    relative = logits - finite(largest)
    return tl.where(relative < LOWEST, LOWEST, relative)


@triton.jit
def finite(largest):
    """A maximum of -inf as 0."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def raise_largest(logits, columns, largest, argmax):
    """The new maximum, the shift of the old one (LOWEST or at most 0), and the argmax: the lowest of equals."""
    in_block = tl.max(logits, 1)
    token = tl.min(tl.where(logits == in_block[:, None], columns[None, :], NO_TOKEN), 1)
    argmax = tl.where(in_block > largest, token, argmax)
    raised = tl.maximum(largest, in_block)
    return raised, above(largest, raised), argmax


@triton.jit
def merge_argmax(largest, top, argmax):
    """Over splits [rows, splits]: of those with the largest logit the lowest token; 0 where everything is NaN."""
    token = tl.min(tl.where(largest == top[:, None], argmax, NO_TOKEN), 1)
    return tl.where(token == NO_TOKEN, 0, token).to(tl.int64)
