"""Train a small Llama to answer tickets: loss on the answer only, on the CPU, in seconds.

What it is not: a training framework. It knows one task, keeps everything in memory and never resumes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from understudy.demo.tickets import Ticket, chat_messages

Progress = Callable[[str], None]

NUM_WORKERS = 2
"""Threads that share each step; fixed, so that every machine trains the same models up to rounding."""
_REPORT_STEPS = 100


@dataclass(frozen=True, slots=True)
class Example:
    """One ticket as token ids: the rendered prompt, then the answer up to and including the end token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How to train: one pass over the examples; the learning rate rises, stays, and falls to zero (all linear).

    It stays high for long because copying words from the ticket is learnt suddenly, and late, or not at all.
    """

    learning_rate: float
    batch_size: int = 16
    rise_fraction: float = 0.06
    fall_fraction: float = 0.4
    weight_decay: float = 0.02
    max_gradient_norm: float = 1.0

    def rate(self, step: int, num_steps: int) -> float:
        """Return the learning rate for one step (0-based)."""
        rising = (step + 1) / max(1.0, self.rise_fraction * num_steps)
        falling = (num_steps - step) / max(1.0, self.fall_fraction * num_steps)
        return self.learning_rate * min(1.0, rising, falling)


def encode(tokenizer: PreTrainedTokenizerFast, tickets: Sequence[Ticket]) -> list[Example]:
    """Tokenize tickets exactly as the chat template does, in two batched calls."""
    rendered = [
        tokenizer.apply_chat_template(chat_messages(ticket), tokenize=False, add_generation_prompt=True)
        for ticket in tickets[:1]
    ]
    before, after = str(rendered[0]).split(tickets[0].text)
    prompts = tokenizer([before + ticket.text + after for ticket in tickets])["input_ids"]
    answers = tokenizer([f"{ticket.reply}{tokenizer.eos_token}" for ticket in tickets])["input_ids"]
    return [Example(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]


def fit(
    model: LlamaForCausalLM, examples: Sequence[Example], schedule: Schedule, *, seed: int, progress: Progress
) -> None:
    """Train, in place, the parameters of `model` that require gradients.

    Each step's batch is split between NUM_WORKERS Python threads of one OpenMP thread each. On two idle cores
    that is as fast as two OpenMP threads (56 ms a step against 88 ms for one); on busy cores it costs little,
    where OpenMP's spinning made a step 7 times slower.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay, fused=True
    )
    batches = _batches(examples, schedule.batch_size, seed)
    recent_losses: deque[float] = deque(maxlen=_REPORT_STEPS)
    model.train()
    # Fused attention is slower than plain products at this size: its bf16 backward alone took 37% of a step.
    with (
        ThreadPoolExecutor(NUM_WORKERS, initializer=partial(torch.set_num_threads, 1)) as pool,
        sdpa_kernel(SDPBackend.MATH),
    ):
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step, len(batches))
            recent_losses.append(_set_gradients(model, trainable, batch, pool))
            nn.utils.clip_grad_norm_(trainable, schedule.max_gradient_norm)
            optimizer.step()
            if (step + 1) % _REPORT_STEPS == 0 or step + 1 == len(batches):
                progress(f"  step {step + 1}/{len(batches)}, loss {fmean(recent_losses):.3f}")
    model.eval()


def _set_gradients(
    model: LlamaForCausalLM, trainable: list[nn.Parameter], batch: Sequence[Example], pool: ThreadPoolExecutor
) -> float:
    """Set every parameter's gradient for one batch; return the batch's mean loss per answer token."""
    num_targets = sum(len(example.answer) for example in batch)

    def gradients(worker: int) -> tuple[float, tuple[Tensor, ...]]:
        loss = _loss_sum(model, _collate(batch[worker::NUM_WORKERS])) / num_targets
        return loss.item(), torch.autograd.grad(loss, trainable)

    losses, shards = zip(*pool.map(gradients, range(NUM_WORKERS)), strict=True)
    for parameter, *parts in zip(trainable, *shards, strict=True):
        parameter.grad = torch.stack(parts).sum(0)
    return float(sum(losses))


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded token_ids [batch, length].

    answer_at [num_answer_tokens] indexes the flattened positions whose next token is targets [num_answer_tokens].
    """

    token_ids: Tensor
    answer_at: Tensor
    targets: Tensor


def _batches(examples: Sequence[Example], batch_size: int, seed: int) -> list[list[Example]]:
    """Return every example once, shuffled, examples of similar length together."""
    rng = random.Random(seed)
    shuffled = rng.sample(examples, len(examples))
    window = batch_size * 16
    batches: list[list[Example]] = []
    for start in range(0, len(shuffled), window):
        by_length = sorted(shuffled[start : start + window], key=lambda e: len(e.prompt) + len(e.answer))
        cut = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
        batches.extend(rng.sample(cut, len(cut)))
    return batches


def _collate(examples: Sequence[Example]) -> Batch:
    rows = [example.prompt + example.answer[:-1] for example in examples]  # the end token is only a target
    length = max(map(len, rows))
    token_ids = torch.tensor([row + (0,) * (length - len(row)) for row in rows])
    answer_at = [
        row * length + len(example.prompt) - 1 + i
        for row, example in enumerate(examples)
        for i in range(len(example.answer))
    ]
    targets = [token for example in examples for token in example.answer]
    return Batch(token_ids, torch.tensor(answer_at), torch.tensor(targets))


def _loss_sum(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Cross-entropy summed over answer tokens; no mask: padding is on the right, and attention is causal."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state.flatten(0, 1)
        logits = model.lm_head(hidden[batch.answer_at])  # [num_answer_tokens, vocab_size]
    return nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum")
