"""Small models with random weights, of architectures and tokenizers that the project did not make for its demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEMPLATE = (
    "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = {
    "plain": ["the quick brown fox jumps over the lazy dog", "my order did not arrive, please help me"],
    "other": [
        "entirely different words make entirely different merges",
        "zwei Sprachen, ein Modell, 0123456789",
    ],
}
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # far from uniform, so that greedy choices are not ties
}


def tokenizer(texts: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of its own, with a chat template."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|tools|>", "<|tool|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(TEXTS[texts] * 50, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast


def make(folder: Path) -> dict[str, str]:
    """llama, qwen2 (same tokenizer), other (another tokenizer) and lora (an adapter on llama), in ``folder``."""
    plain, other = tokenizer("plain"), tokenizer("other")
    torch.manual_seed(7)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(plain), **SIZES)).bfloat16()
    qwen2 = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(plain) + 8, **SIZES)).bfloat16()
    stranger = LlamaForCausalLM(LlamaConfig(vocab_size=len(other), **SIZES)).bfloat16()
    for name, model, words in (("llama", llama, plain), ("qwen2", qwen2, plain), ("other", stranger, other)):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    adapter = get_peft_model(
        llama.float(),
        LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj", "gate_proj"], init_lora_weights=False),
    )
    adapter.save_pretrained(folder / "lora")
    return {name: str(folder / name) for name in ("llama", "qwen2", "other", "lora")}
