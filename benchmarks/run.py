"""``make bench``: every benchmark in turn, results as JSON under benchmarks/results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = (
    "serving.bench_handover",
    "serving.bench_meter",
    "serving.bench_record",
    "serving.bench_shadow_cost",
    "serving.bench_start",
    "serving.bench_throughput",
    "serving.bench_isolation",
    "serving.bench_pressure",
    "kernel_ops.bench_score",
    "kernel_ops.bench_divergence",
)


def main() -> int:
    """Run those named on the command line, or all; options after the names go to each. Returns 1 when one failed."""
    arguments = sys.argv[1:]
    num_names = next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    wanted = arguments[:num_names] or [name.rpartition(".")[2].removeprefix("bench_") for name in BENCHMARKS]
    failed = []
    for module in BENCHMARKS:
        name = module.rpartition(".")[2].removeprefix("bench_")
        if name not in wanted:
            continue
        print(f"\n== {name}", flush=True)
        out = HERE / "results" / f"{name}-{'gpu' if Path('/dev/nvidia0').exists() else 'cpu'}.json"
        command = [sys.executable, "-m", f"benchmarks.{module}", "--out", str(out), *arguments[num_names:]]
        if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall benchmarks ran; results are in benchmarks/results/")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
