"""What a model will need, from its files, before it is loaded. Imports neither vllm nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def checkpoint_bytes(model: str) -> int:
    """Bytes of the weight files of a local checkpoint; 0 for a name that is not a local folder."""
    folder = Path(model)
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)


def refuse_if_too_large(engine_args: Mapping[str, Any], *, aliased: bool) -> None:
    """Raise MemoryError before the kernel has to kill something.

    ``aliased``: it uses the champion's tensors, so its weights need no room.
    """
    weights = 0 if aliased else checkpoint_bytes(engine_args["model"])
    needed = weights + (engine_args.get("kv_cache_memory_bytes") or 0)
    available = psutil.virtual_memory().available
    if needed > available:
        raise MemoryError(
            f"{engine_args['model']} needs {needed / 2**30:.1f} GiB "
            f"({'' if aliased else 'weights and '}kv_cache_memory_bytes), {available / 2**30:.1f} GiB are available"
        )
