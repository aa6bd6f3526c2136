"""Where a model turns hidden states into logits, and whether the fused kernel computes the same.

A model says it with vLLM's LogitsProcessor: head, bias, scale, softcap. Some do more in their compute_logits, and
nothing announces it. So the head is taken from a call that is watched, and then believed only if the fused scores
of some rows agree with those of the model's own logits (``probe``), at two magnitudes, because a softcap hides
among small logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from understudy_kernels import Scores, score, score_logits

PROBE_ROWS = 8
PROBE_MAGNITUDES = (1.0, 8.0)


@dataclass(frozen=True, slots=True)
class Head:
    """logits = scale * softcap(hidden @ weight.T + bias); weight [padded vocab_size, hidden_size]."""

    weight: torch.Tensor
    vocab_size: int
    bias: torch.Tensor | None
    scale: float
    softcap: float | None

    def score(self, hidden: torch.Tensor, targets: torch.Tensor) -> Scores:
        """Scores of ``targets`` [num_tokens] from ``hidden`` [num_tokens, hidden_size], without their logits."""
        return score(
            hidden,
            self.weight,
            targets,
            bias=self.bias,
            scale=self.scale,
            softcap=self.softcap,
            vocab_size=self.vocab_size,
        )


class NoHead(Exception):
    """Why a model's head cannot be used without the model; the message is shown in status."""


def usable_head(model: Any, hidden_size: int, dtype: torch.dtype) -> Head:
    """The model's head, after the probe.

    Raises:
        NoHead: it is sharded, quantised or of another dtype, or the model does more than the head says.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)  # its own: the core's random streams do not move
    rows = torch.randn(PROBE_ROWS, hidden_size, generator=generator).to(device, dtype)
    with watched(model) as calls:
        model.compute_logits(rows)
    if len(calls) != 1:
        raise NoHead(f"compute_logits uses {len(calls)} heads")
    head = head_of(*calls[0], dtype)
    for magnitude in PROBE_MAGNITUDES:
        probe(model, head, rows * magnitude, generator)
    return head


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[Any, Any, Any]]]:
    """Every (processor, lm_head, bias) with which a logits processor of ``model`` is called."""
    calls: list[tuple[Any, Any, Any]] = []
    processors = [each for each in model.modules() if isinstance(each, LogitsProcessor | LogitsProcessorWithLoRA)]

    def watch(processor: Any) -> None:
        forward = processor.forward

        def forward_and_note(lm_head: Any, hidden: Any, embedding_bias: Any = None, *args: Any, **kwargs: Any) -> Any:
            calls.append((processor, lm_head, embedding_bias))
            return forward(lm_head, hidden, embedding_bias, *args, **kwargs)

        processor.forward = forward_and_note

    for processor in processors:
        watch(processor)
    try:
        yield calls
    finally:
        for processor in processors:
            del processor.forward


def head_of(processor: Any, lm_head: Any, bias: torch.Tensor | None, dtype: torch.dtype) -> Head:
    """What the processor says; raises NoHead where that is not everything."""
    lm_head = getattr(lm_head, "base_layer", lm_head)
    plain = getattr(processor, "base_layer", processor)
    if plain.logits_as_input:
        raise NoHead("the model gives logits instead of hidden states")
    if lm_head.tp_size > 1:
        raise NoHead("lm_head is sharded")
    if not isinstance(lm_head.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
        raise NoHead("lm_head is quantised")
    if plain.head_dtype not in (None, dtype) or lm_head.weight.dtype != dtype:
        raise NoHead("lm_head has another dtype than the hidden states")
    return Head(lm_head.weight, plain.org_vocab_size, bias, float(plain.scale), plain.soft_cap)


def probe(model: Any, head: Head, rows: torch.Tensor, generator: torch.Generator) -> None:
    """Raise NoHead where the fused scores of ``rows`` are not those of the model's own logits.

    The tolerance is what rounding the logits to their dtype may move a log-probability; the fused path keeps fp32.
    """
    logits = model.compute_logits(rows)
    if logits.shape[-1] != head.vocab_size:
        raise NoHead(f"{logits.shape[-1]} logits for a vocabulary of {head.vocab_size}")
    targets = torch.randint(logits.shape[-1], (len(rows),), generator=generator).to(rows.device)
    theirs, ours = score_logits(logits, targets), head.score(rows, targets)
    tolerance = 1e-3 + torch.finfo(logits.dtype).eps * float(logits.abs().max())
    for name in ("logprob", "max_logprob"):
        difference = float((getattr(theirs, name) - getattr(ours, name)).abs().max())
        if not difference <= tolerance:
            raise NoHead(f"lm_head alone gives another {name} than the model (by {difference:.2g})")
