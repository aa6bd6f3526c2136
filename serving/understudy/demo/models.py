"""The demo models, built once per folder: champion, lora, int8, worse.

A folder is reused when its manifest names the present sources and library versions and every file it lists is
there in full. Otherwise everything is made again beside it and moved into place in one step, so that an
interrupted build leaves nothing that could be mistaken for a model.

    python -m understudy.demo.models FOLDER
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

NAMES = ("champion", "lora", "int8", "worse")
_MANIFEST = "manifest.json"
_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "safetensors")


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Where the demo models are, and the fraction of held-out tickets each labels right (greedy decoding).

    champion, int8 and worse are Hugging Face checkpoints with a tokenizer; lora is a PEFT adapter of champion.
    """

    champion: Path
    lora: Path
    int8: Path
    worse: Path
    accuracy: Mapping[str, float]
    """By model name; measured when the models were built."""
    num_held_out_tickets: int
    build_s: float

    def table(self) -> str:
        """Return the accuracies as a small text table."""
        rows = [f"{name:<10}{self.accuracy[name]:>9.1%}" for name in NAMES]
        return "\n".join([f"{'model':<10}{'accuracy':>9}  ({self.num_held_out_tickets} held-out tickets)", *rows])


def build(folder: Path, *, progress: Callable[[str], None] = lambda _line: None) -> DemoModels:
    """Return the demo models under `folder`, making them first (about a minute) unless they are there already.

    `progress` receives one line at a time. Raises FileExistsError when the folder holds anything that is not
    the demo's, since a rebuild replaces the folder. Processes that build the same folder wait for each other.
    """
    folder = folder.expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fingerprint = _fingerprint()
    with _locked(folder.parent / f".{folder.name}.lock"):
        models = _cached(folder, fingerprint)
        if models is not None:
            progress(f"reusing {folder}")
            return models
        _refuse_foreign(folder)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch) / "new"
            _make(made, fingerprint, progress)
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            made.rename(folder)
    models = _cached(folder, fingerprint)
    assert models is not None, "a folder just built must be complete"
    return models


def _make(folder: Path, fingerprint: str, progress: Callable[[str], None]) -> None:
    from understudy.demo import recipe  # torch and transformers: seconds, and not needed for a cached folder

    folder.mkdir()
    started_s = time.monotonic()
    accuracy = recipe.make_models(folder, progress)
    manifest = {
        "fingerprint": fingerprint,
        "versions": _versions(),
        "accuracy": accuracy,
        "num_held_out_tickets": recipe.NUM_HELD_OUT_TICKETS,
        "build_s": round(time.monotonic() - started_s, 1),
        "files_bytes": _files_bytes(folder),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _cached(folder: Path, fingerprint: str) -> DemoModels | None:
    """Return the models of a folder that is complete and up to date, else None."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
        if manifest["fingerprint"] != fingerprint or manifest["files_bytes"] != _files_bytes(folder):
            return None
        return DemoModels(
            **{name: folder / name for name in NAMES},
            accuracy=manifest["accuracy"],
            num_held_out_tickets=manifest["num_held_out_tickets"],
            build_s=manifest["build_s"],
        )
    except (FileNotFoundError, ValueError, KeyError):  # no manifest, or a broken one
        return None


def _files_bytes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file of the models, by path relative to the folder."""
    files = (path for name in NAMES for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files)}


def _fingerprint() -> str:
    """Hash what decides the result: the sources that make the models and the versions of the libraries."""
    digest = hashlib.sha256(json.dumps(_versions()).encode())
    for source in sorted(set(Path(__file__).parent.glob("*.py")) - {Path(__file__).parent / "run.py"}):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {library: metadata.version(library) for library in _LIBRARIES}


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    foreign = sorted({entry.name for entry in folder.iterdir()} - {*NAMES, _MANIFEST})
    if foreign:
        raise FileExistsError(f"{folder} holds files that are not the demo's ({', '.join(foreign[:3])})")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build the demo models from the command line; print progress and the accuracy table."""
    parser = argparse.ArgumentParser(description="Build the demo models (champion, lora, int8, worse).")
    parser.add_argument("folder", type=Path)
    models = build(parser.parse_args().folder, progress=lambda line: print(line, flush=True))
    print(models.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
