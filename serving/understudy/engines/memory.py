"""What a model will need, from its files, before it is loaded. Imports neither vllm nor torch."""

from __future__ import annotations

from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def checkpoint_bytes(model: str) -> int:
    """Bytes of the weight files of a local checkpoint; 0 for a name that is not a local folder."""
    folder = Path(model)
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
