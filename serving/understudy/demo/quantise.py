"""Write a W8A8 checkpoint in the compressed-tensors format, by hand, and simulate what it computes.

Weights: int8, symmetric, one scale per output channel: w ~ q * s with s = max|w_row| / 127.
Activations: int8, symmetric, one scale per token, found while running (nothing to calibrate).
Embeddings, and the lm_head tied to them, stay in bf16.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

_MAX_INT8 = 127

QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise [..., num_columns] row by row: int8 of the same shape, and float32 scales [..., 1]."""
    scales = values.float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / _MAX_INT8
    return (values.float() / scales).round().to(torch.int8), scales


def save_int8(model: LlamaForCausalLM, folder: Path) -> None:
    """Save a W8A8 copy of a bf16 model under `folder`; the tokenizer is the caller's to add."""
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": QUANTIZATION_CONFIG}, indent=2) + "\n"
    )
    model.generation_config.save_pretrained(folder)
    tensors = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("lm_head.")  # tied to the embeddings
    }
    for name in _linear_names(model):
        quantised, scales = quantise_rows(tensors[f"{name}.weight"])
        tensors[f"{name}.weight"] = quantised
        tensors[f"{name}.weight_scale"] = scales
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def simulate_int8(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a float copy that rounds weights and activations as the W8A8 checkpoint does."""
    simulated = copy.deepcopy(model)
    for name in _linear_names(simulated):
        linear = simulated.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linear.weight.data = _round_to_int8(linear.weight.data)
        linear.register_forward_pre_hook(lambda _module, inputs: (_round_to_int8(inputs[0]),))
    return simulated


def _round_to_int8(values: Tensor) -> Tensor:
    quantised, scales = quantise_rows(values)
    return (quantised * scales).to(values.dtype)


def _linear_names(model: nn.Module) -> list[str]:
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    ]
