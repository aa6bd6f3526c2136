"""Aliased weights: a challenger on the champion's checkpoint uses the champion's tensors and loads none of its own.

What the second model then costs is its adapter and its KV cache. The model is built on the meta device, which holds no
memory, so that not even a start needs the weights twice; then each module takes over what the champion's module of
the same name holds: parameters, buffers, and whatever loading put there (packed weights are kept in closures on the
CPU, quantisation methods keep state). Nothing writes to weights while serving, so sharing them changes nobody's output.

Attention layers keep their own: their scales belong to the KV cache, which is each core's own and may differ in type.

Where anything does not fit, the challenger loads its weights by itself and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig, replace
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from understudy.engines.memory import refuse_if_too_large

log = logging.getLogger(__name__)

LOAD_FORMAT = "understudy_alias"
ORDINARY = ("auto", "hf", "safetensors", "pt")


class CannotAlias(Exception):
    """The challenger cannot use the champion's tensors; the message says why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights: those it shares with the champion, and its own, adapters among them."""

    shared_bytes: int
    own_bytes: int


def alias(config: VllmConfig, source_config: VllmConfig, source: nn.Module) -> bool:
    """Let a core that is built from ``config`` use the tensors of ``source``, if it is the same checkpoint."""
    if not is_same_checkpoint(config, source_config):
        return False
    config.load_config.load_format = LOAD_FORMAT
    config.load_config.model_loader_extra_config = {}
    AliasLoader.source, AliasLoader.source_config = source, source_config
    return True


def is_same_checkpoint(mine: VllmConfig, other: VllmConfig) -> bool:
    """Whether two configurations load the very same tensors in the very same form."""
    return mine.load_config.load_format in ORDINARY and identity(mine) == identity(other)


def identity(config: VllmConfig) -> tuple[Any, ...]:
    """What decides which tensors a configuration loads, and in what form."""
    model, parallel = config.model_config, config.parallel_config
    folder = Path(model.model)
    return (
        str(folder.resolve()) if folder.is_dir() else model.model,
        model.revision,
        model.quantization,
        model.dtype,
        model.architectures,
        model.hf_config.to_json_string(),
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        config.device_config.device_type,
    )


def weights_of(model: nn.Module | None, checkpoint_bytes: int) -> Weights:
    """What a model that was built takes; of one in processes of its own (None) the files say it.

    On the CPU loading packs weights into closures, where nobody can count them, so they are counted from the shapes
    that were taken over, or from the files that were read (``checkpoint_bytes``; 0 is not known).
    """
    if model is None:
        return Weights(0, checkpoint_bytes)
    adapters = sum(bytes_of(tensor) for tensor in adapters_of(model))
    shared: int | None = getattr(model, "understudy_shared_bytes", None)
    if shared is not None:
        return Weights(shared, adapters)
    return Weights(0, adapters + (checkpoint_bytes or sum(bytes_of(parameter) for parameter in model.parameters())))


def adapters_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """The room for adapters, which vLLM keeps as plain tuples of tensors."""
    for module in model.modules():
        for key, value in vars(module).items():
            if key.startswith("lora_") and isinstance(value, tuple):
                yield from (tensor for tensor in value if isinstance(tensor, torch.Tensor))


def bytes_of(tensor: torch.Tensor) -> int:
    """By shape: a tensor on the meta device has them too."""
    return int(tensor.numel() * tensor.element_size())


@register_model_loader(LOAD_FORMAT)
class AliasLoader(BaseModelLoader):
    """vLLM's model loader for aliased weights; ``alias`` says whose."""

    source: nn.Module
    source_config: VllmConfig

    def download_model(self, model_config: ModelConfig) -> None:
        """The champion's has it already."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """vLLM calls it to load weights again while serving, which would change the champion's."""
        raise CannotAlias("aliased weights cannot be loaded again")

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        """A model on the champion's tensors; where that is not possible an ordinary one."""
        with undone_on_failure(vllm_config) as undo:
            try:
                return self._load(vllm_config, model_config, prefix)
            except Exception as fault:  # noqa: BLE001  # whatever it is: the ordinary way is always open
                undo()
                log.warning("%s loads its weights by itself: %s: %s", model_config.model, type(fault).__name__, fault)
        if current_platform.device_type == "cpu":  # it was let in as one that needs no room for weights
            kv_bytes = vllm_config.cache_config.kv_cache_memory_bytes
            refuse_if_too_large({"model": model_config.model, "kv_cache_memory_bytes": kv_bytes}, aliased=False)
        ordinary = replace(vllm_config.load_config, load_format="auto")
        vllm_config.load_config = ordinary
        return DefaultModelLoader(ordinary).load_model(vllm_config, model_config, prefix)

    def _load(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str) -> nn.Module:
        with set_default_torch_dtype(model_config.dtype), torch.device("meta"):
            model = initialize_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        if hasattr(model, "process_weights_after_loading"):
            raise CannotAlias("its class changes weights after loading")
        shared_bytes = sum(bytes_of(parameter) for parameter in model.parameters())
        same_cache = vllm_config.cache_config.cache_dtype == self.source_config.cache_config.cache_dtype
        adopt(model, self.source, same_cache_dtype=same_cache)
        for module in model.modules():
            if is_attention(module) and hasattr(module, "process_weights_after_loading"):
                module.process_weights_after_loading(model_config.dtype)
        model.understudy_shared_bytes = shared_bytes
        return model.eval()


def adopt(model: nn.Module, source: nn.Module, *, same_cache_dtype: bool = True) -> None:
    """Give each module of ``model`` what the module of that name in ``source`` holds.

    A LoRA layer of the source is looked through: its base layer has the name of the layer it wraps.

    Raises:
        CannotAlias: a module is missing, is another kind of module, or has another shape, or something would be
            left without memory.
    """
    theirs = {name.replace(".base_layer", ""): module for name, module in source.named_modules(remove_duplicate=False)}
    for name, module in model.named_modules(remove_duplicate=False):
        other = theirs.get(name)
        if other is None:
            raise CannotAlias(f"the champion has no {name or 'model'}")
        if type(other) is not type(module):
            raise CannotAlias(f"{name} is a {type(module).__name__}, the champion's a {type(other).__name__}")
        if is_attention(module):
            if not same_cache_dtype and getattr(other, "quant_method", None) is not None:
                raise CannotAlias(f"{name} has scales for another type of KV cache")
            adopt_attention(module, other)
        else:
            adopt_module(name, module, other)
    left = [name for name, tensor in tensors_of(model) if tensor.is_meta]
    if left:
        raise CannotAlias(f"the champion has nothing for {left[0]}")


def adopt_module(name: str, module: nn.Module, other: nn.Module) -> None:
    """All of its parameters, buffers and what loading has put there."""
    is_plain = getattr(other, "quant_method", None) is None or "Unquantized" in type(other.quant_method).__name__
    for key, mine in module._parameters.items():
        their = other._parameters.get(key)
        if mine is None or not is_plain or (their is not None and not their.numel()):  # packed away on the CPU
            continue
        if their is None or (their.shape, their.dtype) != (mine.shape, mine.dtype):
            raise CannotAlias(f"{name}.{key} has another shape or type than the champion's")
    module._parameters = dict(other._parameters)
    module._buffers = dict(other._buffers)
    for key, value in vars(other).items():
        left_by_loading = bool(other._parameters) and (key not in vars(module) or key in ("quant_method", "scheme"))
        if left_by_loading or is_meta(vars(module).get(key)):
            vars(module)[key] = value


def adopt_attention(module: nn.Module, other: nn.Module) -> None:
    """Copies of its few numbers: it may write to them."""
    for key, value in other._parameters.items():
        module._parameters[key] = value
    for key, value in other._buffers.items():
        module._buffers[key] = None if value is None else value.clone()
    for key, value in vars(other).items():
        if is_meta(vars(module).get(key)):
            vars(module)[key] = value.clone() if isinstance(value, torch.Tensor) else value
    if hasattr(module, "kv_cache"):
        module.kv_cache = torch.tensor([])  # until the core has its own


def is_attention(module: nn.Module) -> bool:
    """Whether it is a layer with a KV cache, which is what vLLM gives an ``impl`` to."""
    return hasattr(module, "impl")


def is_meta(value: Any) -> bool:
    """Whether it is a tensor without memory."""
    return isinstance(value, torch.Tensor) and value.is_meta


def tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer, and every tensor that a module has as a plain attribute."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{name}.{key}", value


@contextmanager
def undone_on_failure(config: VllmConfig) -> Iterator[Any]:
    """Gives a function that takes back what building a model leaves in tables outside of it."""
    tables: list[Any] = [
        config.compilation_config.static_forward_context,
        config.compilation_config.static_all_moe_layers,
        rotary_embedding._ROPE_DICT,
    ]
    before = [table.copy() for table in tables]

    def undo() -> None:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            (table.update if isinstance(table, dict) else table.extend)(content)

    yield undo
