"""Models with random weights for benchmarks: ``tiny`` (the overhead shows) and ``base`` (113 M parameters, busy)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}


def make(folder: Path, size: str, seed: int = 7) -> str:
    """The folder of a Llama of this size with a tokenizer, made where it is not there yet."""
    path = folder / f"{size}-{seed}"
    if not (path / "config.json").exists():
        _build(size, seed, path)
    return str(path)


def _build(size: str, seed: int, path: Path) -> None:
    import torch
    from tests.serving.models import tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer("plain")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.2 if size == "tiny" else 0.05,
        **SIZES[size],
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    words.save_pretrained(path)
