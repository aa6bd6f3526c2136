"""How the arms of a kernel benchmark are timed, weighed and checked against each other.

An Arm is one way to do the work. Arms run interleaved, in a new random order in every repeat; on a GPU each run is
timed by CUDA events, on the CPU by the clock. One of them, "ours again", is the same thing measured twice: the noise.
Memory is the peak beyond the inputs: on a GPU of PyTorch's allocator, on the CPU of its accounting, which does not see
what a matmul library keeps for itself. An arm that cannot run here gets a row that says why.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import percentiles, ratio

MIN_REPEATS, MAX_REPEATS = 5, 50


@dataclass(frozen=True, slots=True)
class Regime:
    """The shape of the work. Both models of divergence have the same sizes."""

    num_tokens: int
    hidden_size: int
    vocab_size: int
    dtype: str

    def __str__(self) -> str:
        return f"T {self.num_tokens}  H {self.hidden_size}  V {self.vocab_size}  {self.dtype}"


@dataclass(frozen=True, slots=True)
class Arm:
    """``run`` does the work and returns what ``value`` turns into one number for each position, or None."""

    run: Callable[[], Any]
    value: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """An arm that does not run here, and why."""

    why: str


def measure(
    arms: Mapping[str, Arm | Absent], device: torch.device, budget_s: float, flops: float
) -> list[dict[str, Any]]:
    """A row for each arm: p20, p50, p80 in ms, peak bytes, TFLOP/s, ratio to "ours", and deviation from it."""
    able: dict[str, Arm] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        reason = arm.why if isinstance(arm, Absent) else try_once(arm, device)
        if reason:
            rows[name] = {"arm": name, "absent": reason}
        elif isinstance(arm, Arm):
            able[name] = arm
    peaks = {name: peak_bytes(arm, device) for name, arm in able.items()}
    deviations = deviations_from_ours(able)
    spent_ms = interleave(able, device, budget_s)
    for name, times in spent_ms.items():
        rows[name] = {
            "arm": name,
            **{f"{at}_ms": value for at, value in percentiles(times).items()},
            "repeats": len(times),
            "peak_bytes": peaks[name],
            "tflop_per_s": flops / percentiles(times)["p50"] / 1e9,
            "times_ours": ratio(times, spent_ms["ours"]),
            "deviation": deviations[name],
        }
    return [rows[name] for name in arms]


def try_once(arm: Arm, device: torch.device) -> str:
    """Warm up (compile, find algorithms); what went wrong, or nothing."""
    try:
        arm.run()
        synchronize(device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    return ""


def interleave(arms: Mapping[str, Arm], device: torch.device, budget_s: float) -> dict[str, list[float]]:
    """Milliseconds of each run of each arm; as many repeats as the budget allows."""
    spent: dict[str, list[float]] = {name: [] for name in arms}
    started_s = time.perf_counter()
    for repeat in range(MAX_REPEATS):
        if repeat >= MIN_REPEATS and time.perf_counter() - started_s > budget_s:
            break
        for name in random.Random(repeat).sample(sorted(arms), len(arms)):
            spent[name].append(run_ms(arms[name].run, device))
    return spent


def run_ms(run: Callable[[], object], device: torch.device) -> float:
    """One run, with the device idle before it."""
    synchronize(device)
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        result = run()
        after.record()
        after.synchronize()
        del result
        return float(before.elapsed_time(after))
    started_s = time.perf_counter()
    result = run()
    spent_s = time.perf_counter() - started_s
    del result
    return 1000 * spent_s


def peak_bytes(arm: Arm, device: torch.device) -> int:
    """The most that one run had allocated at once, results included."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = arm.run()
        synchronize(device)
        del result
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = arm.run()
    del result
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def deviations_from_ours(arms: Mapping[str, Arm]) -> dict[str, float | None]:
    """The largest difference of an arm's values from ours: a benchmark must compare the same thing."""
    ours = arms["ours"]
    assert ours.value is not None
    expected = ours.value(ours.run()).double()
    return {
        name: None if arm.value is None else float((arm.value(arm.run()).double() - expected).abs().max())
        for name, arm in arms.items()
    }


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> dict[str, Any]:
    """Of the device, for the results."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {"device": "cpu", "threads": torch.get_num_threads()}


def print_table(regime: Regime, rows: Sequence[Mapping[str, Any]], products: str) -> None:
    """One regime. ``products`` names the arm of bare matrix products."""
    print(f"\n{regime}")
    times = f"{'p20 ms':>10}{'p50 ms':>10}{'p80 ms':>10}"
    print(f"{'arm':<26}{times}{'times ours':>22}{'peak MB':>10}{'TFLOP/s':>9}{'deviation':>11}")
    base = {row["arm"]: row for row in rows}
    for row in rows:
        if "absent" in row:
            print(f"{row['arm']:<26}not here: {row['absent']}")
            continue
        times = "".join(f"{row[f'{at}_ms']:10.2f}" for at in ("p20", "p50", "p80"))
        r, deviation = row["times_ours"], row["deviation"]
        span = f"{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        shown = "" if deviation is None else f"{deviation:.1e}"
        print(f"{row['arm']:<26}{times}{span:>22}{row['peak_bytes'] / 1e6:10.2f}{row['tflop_per_s']:9.3f}{shown:>11}")
    if "p50_ms" in base[products]:
        print(f"ours / {products}: {base['ours']['p50_ms'] / base[products]['p50_ms']:.2f}")


def result(regime: Regime, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For the file."""
    return {"regime": asdict(regime), "rows": list(rows)}
