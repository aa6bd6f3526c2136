"""Quantised copies of a small model, written by hand in the compressed-tensors format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from understudy.demo.quantise import save_int8

GROUP = 64
W4A16: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP,
                "dynamic": False,
            },
        }
    },
    "ignore": ["lm_head"],
}  # fmt: skip


def save_w8a8(source: str, folder: Path) -> str:
    """Int8 weights by channel, int8 activations by token."""
    folder.mkdir()
    save_int8(AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16), folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def save_w4a16(source: str, folder: Path) -> tuple[str, Any]:
    """Int4 weights in groups of 64, activations as they are. Also a plain model that computes the same."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    plain = copy.deepcopy(model)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        weight = tensors.pop(f"{name}.weight").float()
        groups = weight.view(weight.shape[0], -1, GROUP)
        scales = (groups.abs().amax(-1, keepdim=True) / 7.0).clamp_min(1e-9).bfloat16()
        values = (groups / scales.float()).round().clamp(-8, 7)
        tensors[f"{name}.weight_packed"] = pack_to_int32(values.view_as(weight).to(torch.int8), 4)
        tensors[f"{name}.weight_scale"] = scales.squeeze(-1)
        tensors[f"{name}.weight_shape"] = torch.tensor(weight.shape)
        plain.get_submodule(name).weight.data = (values * scales.float()).view_as(weight).bfloat16()
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": W4A16}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder), plain
