"""What memory a model holds in its worker, counted once after it was loaded: the driver is not kept from the champion.

Storages are counted once however many tensors share them, and those that an earlier model of the process already holds
are counted as shared. On the CPU oneDNN may keep prepacked copies of weights that torch does not know of: those are
only in the process's resident memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

_owners: dict[int, str] = {}
"""Address of a storage -> the first model of this process that was seen to hold it."""


def footprint(core: Any, name: str) -> dict[str, int | None]:
    """Bytes by kind, summed over the workers of ``core`` (vLLM's EngineCore). None: not known here.

    Returns:
        weights_bytes, shared_weights_bytes, adapter_bytes, kv_reserved_bytes, kv_block_tokens (no bytes, of course),
        kv_block_bytes, and on CUDA peak_activation_bytes (vLLM's own profile, where it made one).
    """
    ranks = core.model_executor.collective_rpc(worker_footprint, args=(name,))
    kinds = {kind for rank in ranks for kind in rank}
    found = {kind: _sum(rank.get(kind) for rank in ranks) for kind in sorted(kinds)}
    return found | kv_block(core.scheduler.kv_cache_config, found["kv_reserved_bytes"])


def kv_block(config: Any, reserved_bytes: int | None) -> dict[str, int | None]:
    """Tokens and bytes (over all workers) of one block, from vLLM's KVCacheConfig.

    None for both where a request holds other blocks than one for so many tokens: several kinds of cache, a window, a
    state.
    """
    groups = config.kv_cache_groups
    simple = len(groups) == 1 and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)
    if not simple or not config.num_blocks or reserved_bytes is None:
        return {"kv_block_tokens": None, "kv_block_bytes": None}
    return {
        "kv_block_tokens": groups[0].kv_cache_spec.block_size,
        "kv_block_bytes": reserved_bytes // config.num_blocks,
    }


def worker_footprint(worker: Any, name: str) -> dict[str, int | None]:
    """The same of one worker; runs in its process."""
    worker = getattr(worker, "worker", worker)  # vLLM hands out its wrapper
    runner = worker.model_runner
    model = runner.get_model() if hasattr(runner, "get_model") else runner.model
    adapters = list(adapter_tensors(model))
    mine = {id(tensor) for tensor in adapters}
    weights = [each for each in (*model.parameters(), *model.buffers()) if id(each) not in mine]
    own, shared = counted(weights, name)
    return {
        "weights_bytes": own,
        "shared_weights_bytes": shared,
        "adapter_bytes": sum(counted(adapters, name)),
        "kv_reserved_bytes": sum(counted(flat(runner.kv_caches), name)),
        "peak_activation_bytes": getattr(worker, "peak_activation_memory", None),
    }


def allocator() -> dict[str, int] | None:
    """torch's CUDA allocator in this process: all its models together. None without CUDA."""
    if not torch.cuda.is_available():
        return None
    return {
        "allocated_bytes": torch.cuda.memory_allocated(),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.memory_reserved(),
    }


def counted(tensors: Iterable[torch.Tensor], name: str) -> tuple[int, int]:
    """(bytes of storages that are ``name``'s own, bytes of those that another model held before)."""
    own = shared = 0
    seen: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if not address or address in seen:
            continue
        seen.add(address)
        if _owners.setdefault(address, name) == name:
            own += storage.nbytes()
        else:
            shared += storage.nbytes()
    return own, shared


def adapter_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The slots that vLLM's LoRA layers keep for adapters, filled or not."""
    for module in model.modules():
        for attribute in ("lora_a_stacked", "lora_b_stacked"):
            yield from flat(getattr(module, attribute, ()))


def flat(tensors: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(tensors, torch.Tensor):
        yield tensors
    elif isinstance(tensors, dict):
        yield from flat(tuple(tensors.values()))
    elif isinstance(tensors, list | tuple):
        for each in tensors:
            yield from flat(each)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
