"""What a second model costs in memory where it uses the champion's tensors: measured on the engine process."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.serving.models import SIZES, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from understudy.config import parse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 16 * 2**20, "max_model_len": 512}


def make(folder: Path) -> tuple[str, str, int]:
    """A model of 58 M parameters, an adapter on it, and the bytes of the model's weights."""
    words = tokenizer("plain")
    sizes = SIZES | {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).bfloat16()
    num_bytes = sum(parameter.numel() * 2 for parameter in model.parameters())
    for part in (model, words):
        part.save_pretrained(folder / "model")
    adapter = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    adapter.save_pretrained(folder / "lora")
    return str(folder / "model"), str(folder / "lora"), num_bytes


async def most_memory(folder: Path, model: str, *challengers: dict[str, Any]) -> tuple[int, list[Any]]:
    """The most resident bytes that the engine process ever had, and the challengers."""
    from understudy.engines import placements

    config = parse(
        {
            "champion": {"model": model, "name": "champ", "engine_args": SMALL},
            "challengers": [
                {"model": model, "name": f"c{number}", **each, "engine_args": SMALL | each.get("engine_args", {})}
                for number, each in enumerate(challengers)
            ],
        }
    )
    engines = await placements.start(config, folder)
    try:
        status = await asyncio.to_thread(Path(f"/proc/{engines.processes[0].pid}/status").read_text)
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024, list(engines.challengers)
    finally:
        await engines.close()


def test_two_aliased_challengers_need_less_than_one_that_loads_its_own(tmp_path: Path) -> None:
    """Not even while they start: the high-water mark counts."""
    torch.manual_seed(1)
    model, lora, num_bytes = make(tmp_path)
    aliased, (same, tuned) = asyncio.run(most_memory(tmp_path / "a", model, {}, {"lora": lora}))
    own, (twin,) = asyncio.run(most_memory(tmp_path / "b", model, {"engine_args": {"load_format": "safetensors"}}))
    assert same.weights["own_bytes"] == 0
    assert 0 < tuned.weights["own_bytes"] < 0.1 * num_bytes  # the adapter
    for challenger in (same, tuned):
        assert challenger.weights["shared_bytes"] >= num_bytes
    assert twin.weights["own_bytes"] >= num_bytes
    print(f"weights {num_bytes / 2**20:.0f} MiB; two aliased {aliased / 2**20:.0f}, one own {own / 2**20:.0f} MiB")
    assert own - aliased > 0.7 * num_bytes
