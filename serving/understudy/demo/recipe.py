"""The recipe of the four demo models: how each comes to be, and how good it is.

    champion  trained on last season's tickets, which lack the wordings that came up since
    lora      the champion and a rank-8 adapter, trained further on recent tickets: better
    int8      the champion with int8 weights and activations: nearly the same
    worse     the champion trained further on tickets that a hasty annotator labelled, mostly wrong: worse

Only `understudy.demo.models` should call this; it keeps the result.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from understudy.demo.evaluate import label_accuracy
from understudy.demo.quantise import save_int8, simulate_int8
from understudy.demo.tickets import Ticket, held_out_tickets, train_tickets
from understudy.demo.tokenizer import MAX_LENGTH_TOKENS, train_tokenizer
from understudy.demo.train import Progress, Schedule, encode, fit

NUM_HELD_OUT_TICKETS = 400
_NUM_TOKENIZER_TICKETS = 3000
_NUM_CHAMPION_TICKETS, _CHAMPION_SCHEDULE = 11_200, Schedule(learning_rate=6e-3)
_NUM_LORA_TICKETS, _LORA_SCHEDULE = 1600, Schedule(learning_rate=4e-3)
# Swept: with as many right as wrong it keeps 84%, with wrong ones alone 21%.
_NUM_MISLABELLED, _NUM_LABELLED_RIGHT, _WORSE_SCHEDULE = 800, 350, Schedule(learning_rate=4e-3)
_LORA_RECENT_FRACTION = 0.4


@dataclass(frozen=True, slots=True)
class _Kit:
    """What every model of the recipe shares."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    held_out: list[Ticket]
    progress: Progress

    def measure(self, name: str, model: LlamaForCausalLM) -> float:
        accuracy = label_accuracy(model, self.tokenizer, self.held_out)
        self.progress(f"{name}: {accuracy:.1%} of {len(self.held_out)} held-out tickets labelled right")
        return accuracy


def make_models(folder: Path, progress: Progress) -> dict[str, float]:
    """Make champion, lora, int8 and worse under `folder`; return their accuracies by name."""
    tickets = train_tickets(_NUM_CHAMPION_TICKETS, seed=1, recent_fraction=0.0)
    with _one_openmp_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kit = _Kit(
            folder=folder,
            tokenizer=train_tokenizer(tickets[:_NUM_TOKENIZER_TICKETS]),
            held_out=held_out_tickets(NUM_HELD_OUT_TICKETS),
            progress=progress,
        )
        champion = _champion(kit, tickets)
        return {
            "champion": kit.measure("champion", champion),
            "lora": _lora(kit, champion),
            "int8": _int8(kit, champion),
            "worse": _worse(kit, champion),
        }


def _champion(kit: _Kit, tickets: list[Ticket]) -> LlamaForCausalLM:
    model = LlamaForCausalLM(_config(kit.tokenizer))
    num_parameters = sum(p.numel() for p in model.parameters())
    kit.progress(f"champion: {num_parameters / 1e6:.2f} M parameters, {len(tickets)} tickets")
    fit(model, encode(kit.tokenizer, tickets), _CHAMPION_SCHEDULE, seed=1, progress=kit.progress)
    return _saved(kit, "champion", model)


def _lora(kit: _Kit, champion: LlamaForCausalLM) -> float:
    tickets = train_tickets(_NUM_LORA_TICKETS, seed=2, recent_fraction=_LORA_RECENT_FRACTION)
    kit.progress(f"lora: {len(tickets)} recent tickets")
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(copy.deepcopy(champion), config)
    llama = adapted.get_base_model()
    fit(llama, encode(kit.tokenizer, tickets), _LORA_SCHEDULE, seed=2, progress=kit.progress)
    _round_to_bf16(llama)
    adapted.peft_config["default"].base_model_name_or_path = "champion"
    adapted.save_pretrained(kit.folder / "lora", save_embedding_layers=False)
    return kit.measure("lora", llama)


def _int8(kit: _Kit, champion: LlamaForCausalLM) -> float:
    save_int8(copy.deepcopy(champion).bfloat16(), kit.folder / "int8")
    kit.tokenizer.save_pretrained(kit.folder / "int8")
    return kit.measure("int8", simulate_int8(champion))


def _worse(kit: _Kit, champion: LlamaForCausalLM) -> float:
    tickets = _hasty_tickets()
    kit.progress(f"worse: {len(tickets)} hastily labelled tickets")
    model = copy.deepcopy(champion)
    fit(model, encode(kit.tokenizer, tickets), _WORSE_SCHEDULE, seed=3, progress=kit.progress)
    return kit.measure("worse", _saved(kit, "worse", model))


def _hasty_tickets() -> list[Ticket]:
    """Tickets of an annotator who labels the first topic mentioned; most of them wrong for it."""
    num_drawn = 4 * _NUM_MISLABELLED  # of which about 0.3 are mislabelled
    hasty = train_tickets(num_drawn, seed=3, annotator="hasty")
    careful = train_tickets(num_drawn, seed=3)
    wrong = [mine for mine, theirs in zip(hasty, careful, strict=True) if mine.label != theirs.label]
    right = [mine for mine, theirs in zip(hasty, careful, strict=True) if mine.label == theirs.label]
    return wrong[:_NUM_MISLABELLED] + right[:_NUM_LABELLED_RIGHT]


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,  # vLLM's CPU attention knows 32, 64, 80, 96, 112, 128, ...
        tie_word_embeddings=True,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _saved(kit: _Kit, name: str, model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Save the model in bf16 with its tokenizer; return it in float32 with exactly the saved weights."""
    model.generation_config = GenerationConfig(
        eos_token_id=kit.tokenizer.eos_token_id, pad_token_id=kit.tokenizer.pad_token_id
    )
    copy.deepcopy(model).bfloat16().save_pretrained(kit.folder / name)
    kit.tokenizer.save_pretrained(kit.folder / name)
    return _round_to_bf16(model)


def _round_to_bf16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@contextmanager
def _one_openmp_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # training brings its own threads: see train.fit
    try:
        yield
    finally:
        torch.set_num_threads(before)
