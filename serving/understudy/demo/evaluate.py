"""Measure a demo model: the fraction of tickets whose label its greedy answer gets right."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from understudy.demo.tickets import LABEL_PATTERN, Ticket
from understudy.demo.train import encode

LABEL_LINE_TOKENS = 6
"""Enough for "label: X" and the line break under the demo tokenizer."""


def label_of(reply: str) -> str | None:
    """Return the label a reply names, or None when it names none."""
    match = re.match(LABEL_PATTERN, reply)
    return match[1] if match else None


def greedy_replies(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tickets: Sequence[Ticket],
    *,
    max_new_tokens: int,
    batch_size: int = 100,
) -> list[str]:
    """Decode greedily, in left-padded batches; a reply ends at the end token or after max_new_tokens."""
    examples = encode(tokenizer, tickets)
    replies: list[str] = []
    for start in range(0, len(examples), batch_size):
        prompts = [list(example.prompt) for example in examples[start : start + batch_size]]
        padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            token_ids = model.generate(**padded, max_new_tokens=max_new_tokens, do_sample=False)
        generated = token_ids[:, padded["input_ids"].shape[1] :]
        replies.extend(tokenizer.batch_decode(generated, skip_special_tokens=True))
    return replies


def label_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tickets: Sequence[Ticket]) -> float:
    """Return the fraction of tickets labelled right, decoding no further than the label line."""
    replies = greedy_replies(model, tokenizer, tickets, max_new_tokens=LABEL_LINE_TOKENS)
    right = sum(label_of(reply) == ticket.label for reply, ticket in zip(replies, tickets, strict=True))
    return right / len(tickets)
