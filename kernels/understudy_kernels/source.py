"""Where logits come from: a head applied to hidden states, or logits that are there already.

    Head(hidden, weight, ...)   logits = scale * cap(hidden @ weight.T + bias),  cap(x) = softcap * tanh(x / softcap)
    Logits(logits)

The order (bias, cap, scale) is that of vLLM's LogitsProcessor. Both are checked when built, so that the operations
below them need not look again. Only the first ``vocab_size`` rows of a weight count: engines pad the vocabulary, and
padding must not get probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class Head:
    """A language model's head and what it is applied to.

    Attributes:
        hidden: [num_tokens, hidden_size].
        weight: [padded vocab_size, hidden_size], of the same dtype and device.
        vocab_size: at most the weight's rows.
        bias: [padded vocab_size] or None.
        scale: applied last. Granite divides by ``logits_scaling``: give 1 / logits_scaling.
        softcap: as in Gemma 2, or None.
        rounded: the sum, bias included, is rounded to the inputs' dtype before anything else happens to it.
    """

    hidden: Tensor
    weight: Tensor
    vocab_size: int
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    rounded: bool = False

    def __post_init__(self) -> None:
        check_matrix("hidden", self.hidden)
        check_matrix("weight", self.weight)
        check_same("weight", self.weight, self.hidden)
        if self.hidden.shape[1] != self.weight.shape[1]:
            raise ValueError(f"hidden is {shape(self.hidden)} and weight {shape(self.weight)}: hidden sizes differ")
        if not 0 < self.vocab_size <= self.weight.shape[0]:
            raise ValueError(f"vocab_size {self.vocab_size} is not in 1..{self.weight.shape[0]}, the weight's rows")
        if self.bias is not None:
            if self.bias.dim() != 1 or self.bias.shape[0] < self.vocab_size:
                raise ValueError(f"bias is {shape(self.bias)}, not [at least {self.vocab_size}]")
            check_dtype("bias", self.bias)
            if self.bias.device != self.hidden.device:
                raise ValueError(f"bias is on {self.bias.device}, hidden on {self.hidden.device}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap {self.softcap} is not above 0")

    @property
    def num_tokens(self) -> int:
        """Rows of hidden."""
        return int(self.hidden.shape[0])

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.hidden.device


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits that somebody else has materialised, [num_tokens, padded vocab_size]."""

    logits: Tensor
    vocab_size: int

    def __post_init__(self) -> None:
        check_matrix("logits", self.logits)
        if not 0 < self.vocab_size <= self.logits.shape[1]:
            raise ValueError(f"vocab_size {self.vocab_size} is not in 1..{self.logits.shape[1]}, the logits' columns")

    @property
    def num_tokens(self) -> int:
        """Rows of logits."""
        return int(self.logits.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self.logits.device


Source = Head | Logits


def is_tied(p: Source, q: Source) -> bool:
    """Whether both apply one weight: the same memory, read in the same way."""
    if not isinstance(p, Head) or not isinstance(q, Head):
        return False
    mine, theirs = p.weight, q.weight
    if mine.dtype != theirs.dtype or mine.stride() != theirs.stride() or mine.shape[1] != theirs.shape[1]:
        return False
    return bool(mine.data_ptr() == theirs.data_ptr())


def check_targets(targets: Tensor, source: Source) -> None:
    """Targets are int64 [num_tokens] on the source's device. Their values are not looked at: that would wait for it."""
    if targets.dtype != torch.int64 or targets.shape != (source.num_tokens,):
        raise ValueError(f"targets are {targets.dtype} {shape(targets)}, not torch.int64 [{source.num_tokens}]")
    if targets.device != source.device:
        raise ValueError(f"targets are on {targets.device}, the model's numbers on {source.device}")


def check_pair(p: Source, q: Source) -> None:
    """Both sides describe the same positions over the same vocabulary on the same device."""
    if p.num_tokens != q.num_tokens:
        raise ValueError(f"p has {p.num_tokens} tokens and q {q.num_tokens}: the positions must be the same")
    if p.vocab_size != q.vocab_size:
        raise ValueError(f"p has a vocabulary of {p.vocab_size} and q of {q.vocab_size}")
    if p.device != q.device:
        raise ValueError(f"p is on {p.device} and q on {q.device}")


def check_matrix(name: str, tensor: Tensor) -> None:
    """Two dimensions, the last one contiguous, and a dtype that is supported."""
    if tensor.dim() != 2:
        raise ValueError(f"{name} is {shape(tensor)}: two dimensions are needed")
    if tensor.numel() and tensor.stride(1) != 1:
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}: the last one must be 1")
    check_dtype(name, tensor)


def check_dtype(name: str, tensor: Tensor) -> None:
    """One of DTYPES."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}, not one of {', '.join(map(str, DTYPES))}")


def check_same(name: str, tensor: Tensor, hidden: Tensor) -> None:
    """A weight has the dtype and the device of the hidden states."""
    if tensor.dtype != hidden.dtype or tensor.device != hidden.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}, hidden {hidden.dtype} on {hidden.device}: they must be equal"
        )


def shape(tensor: Tensor) -> str:
    """As people write it."""
    return f"[{', '.join(map(str, tensor.shape))}]"
