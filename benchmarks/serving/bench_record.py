"""The record: what it costs to write, how large it is, and how fast it is read, queried and recovered.

    python -m benchmarks.serving.bench_record [--out FILE.json] [--folder DISK] [--small]

Writing, arms interleaved in every repeat, on the same disk:

    keeper          append() of every event, then flush(): JSON, hash chain, group fsync, index
    raw             one os.write() for each of the keeper's lines, fsync after the same number of groups
    raw again       the same once more: the noise
    raw, no fsync   one os.write() for each line, and nothing durable
    JSON lines      what one would write by hand: json.dumps of the same documents, with all numbers and with the prompt
                    on both sides, one os.write() each, fsync after the same number of groups

Ratios are throughputs, keeper / raw, as medians over the repeats with a bootstrap 95% interval. The events are
pairs of an exchange and its ending: --prompt-tokens in, --output-tokens out on both sides, with logprobs and
scores. CPU seconds are printed beside them, because a busy machine slows the keeper, which computes, more than raw,
which waits for the disk. What an exchange costs the serving process, and how much of it holds the GIL: record_cost.py.

Then: a log of --recovery-mb is opened after a crash; segments are sealed; and --query-exchanges exchanges in sealed
segments (copies of one segment, with ids of their own) are queried by a new process with nothing of them in the page
cache.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import finish, machine, parser, ratio
from benchmarks.serving.record_cost import measure_cost
from benchmarks.serving.record_events import make_events, open_keeper, timed
from benchmarks.serving.record_reading import measure_query, measure_recovery, measure_sealing
from understudy.record import Accepted, Event, RecordReader, WriterLimits, decode
from understudy.record.index import Index
from understudy.record.lines import record_of, scan
from understudy.record.recover import replay
from understudy.record.sources import Source

GOAL, STRETCH = 0.5, 0.8


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-record-") as name:
        folder = Path(name)
        events = make_events(options.num_exchanges, options.prompt_tokens, options.output_tokens)
        results: dict[str, Any] = {
            "benchmark": "record",
            "regime": {key: value for key, value in vars(options).items() if key not in ("out", "folder")},
            "machine": machine() | {"load_1_min": f"{os.getloadavg()[0]:.2f}", "file_system": file_system(folder)},
            "throughput": measure_throughput(folder, events, options.repeats),
            "cpu_us_per_exchange": measure_cost(folder / "cost", events[:400]),
            "append_us": measure_append(folder / "append", events),
            "loop_lag_ms": measure_loop_lag(folder / "lag", events, options.rate),
            "reading": measure_reading(folder / "reading", events),
            "sealing": measure_sealing(folder / "reading", len(events) // 2),
            "recovery": measure_recovery(folder / "recovery", events, options.recovery_mb),
            "cold_query": measure_query(folder / "query", options.query_exchanges),
        }
    print_table(results)
    finish(results, options.out)


def parse_options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    options.add_argument("--num-exchanges", type=int, default=1500)
    options.add_argument("--prompt-tokens", type=int, default=512)
    options.add_argument("--output-tokens", type=int, default=256)
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--rate", type=int, default=50, help="exchanges/s while the loop's lag is measured")
    options.add_argument("--recovery-mb", type=int, default=1000)
    options.add_argument("--query-exchanges", type=int, default=1_000_000)
    options.add_argument("--small", action="store_true", help="a look whether it works: a hundredth of everything")
    given = options.parse_args()
    if given.small:
        given.num_exchanges, given.repeats, given.recovery_mb, given.query_exchanges = 100, 2, 10, 10_000
    return given


def file_system(folder: Path) -> str:
    said = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return said.stdout.strip()


def measure_throughput(folder: Path, events: Sequence[Event], repeats: int) -> dict[str, Any]:
    names = ("keeper", "raw", "raw again", "raw, no fsync", "JSON lines")
    spent: dict[str, list[Spent]] = {name: [] for name in names}
    num_bytes = num_groups = num_plain_bytes = 0
    for repeat in range(repeats + 1):  # the first warms up
        log = folder / f"log-{repeat}"
        of_keeper = time_keeper(log, events)
        lines = [line for _, line in scan(log, print)]
        documents = plain_documents(lines)
        num_bytes, num_plain_bytes = sum(map(len, lines)), sum(len(json.dumps(each)) + 1 for each in documents)
        num_groups = max(1, round(num_bytes / WriterLimits().group_bytes))
        raw = folder / "raw"
        arms: dict[str, Callable[[], Spent]] = {
            "raw": partial(time_raw, raw, lines, num_groups),
            "raw again": partial(time_raw, raw, lines, num_groups),
            "raw, no fsync": partial(time_raw, raw, lines, 0),
            "JSON lines": partial(time_json, raw, documents, num_groups),
        }
        this = {"keeper": of_keeper}
        for name in random.Random(repeat).sample(sorted(arms), len(arms)):
            this[name] = arms[name]()
        for path in log.iterdir():
            path.unlink()
        if repeat:
            for name, one in this.items():
                spent[name].append(one)
    wall_s = {name: [one.wall_s for one in arm] for name, arm in spent.items()}
    return {
        "num_records": len(events),
        "num_bytes": num_bytes,
        "num_groups": num_groups,
        "bytes_per_exchange": {"log": 2 * num_bytes / len(events), "JSON lines": 2 * num_plain_bytes / len(events)},
        "arms": {
            name: arm_summary(arm, len(events), num_plain_bytes if name == "JSON lines" else num_bytes)
            for name, arm in spent.items()
        },
        "keeper / raw": ratio(wall_s["raw"], wall_s["keeper"]),
        "keeper / raw, no fsync": ratio(wall_s["raw, no fsync"], wall_s["keeper"]),
        "keeper / JSON lines": ratio(wall_s["JSON lines"], wall_s["keeper"]),
        "raw again / raw": ratio(wall_s["raw"], wall_s["raw again"]),
        "goal": GOAL,
        "stretch": STRETCH,
    }


def plain_documents(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The records as somebody would write them who thinks of nothing: lists of numbers, the prompt on both sides."""
    documents = [decode(record_of(line)) for line in lines]
    prompts = {each["exchange_id"]: each["champion"]["prompt_token_ids"] for each in documents if "champion" in each}
    for each in documents:
        if each.get("observation"):
            each["observation"]["prompt_token_ids"] = prompts[each["exchange_id"]]
    return documents


class Spent(NamedTuple):
    """Of one arm in one repeat."""

    wall_s: float
    cpu_s: float


@contextmanager
def spending(done: list[Spent]) -> Iterator[None]:
    gc.collect()
    os.sync()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield
    done.append(Spent(time.perf_counter() - wall_s, time.process_time() - cpu_s))


def time_keeper(folder: Path, events: Sequence[Event]) -> Spent:
    keeper, done = open_keeper(folder), list[Spent]()

    async def run() -> None:
        with spending(done):
            for event in events:
                keeper.append(event)
            await keeper.flush()

    asyncio.run(run())
    keeper.close()
    return done[0]


def time_raw(path: Path, lines: Sequence[bytes], num_fsyncs: int) -> Spent:
    every, done = len(lines) // num_fsyncs if num_fsyncs else len(lines) + 1, list[Spent]()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    with spending(done):
        for number, line in enumerate(lines, 1):
            os.write(fd, line)
            if number % every == 0:
                os.fsync(fd)
        if num_fsyncs:
            os.fsync(fd)
    os.close(fd)
    path.unlink()
    return done[0]


def time_json(path: Path, documents: Sequence[dict[str, Any]], num_fsyncs: int) -> Spent:
    every, done = len(documents) // num_fsyncs, list[Spent]()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    with spending(done):
        for number, document in enumerate(documents, 1):
            os.write(fd, json.dumps(document).encode() + b"\n")
            if number % every == 0:
                os.fsync(fd)
        os.fsync(fd)
    os.close(fd)
    path.unlink()
    return done[0]


def measure_append(folder: Path, events: Sequence[Event]) -> dict[str, Any]:
    """Appends in small bursts, with the loop running in between, while the writer writes them."""
    keeper = open_keeper(folder)
    nothing: list[int] = []
    spent: list[int] = []

    async def run() -> None:
        for start in range(0, len(events), 8):
            for event in events[start : start + 8]:
                before = time.perf_counter_ns()
                keeper.append(event)
                spent.append(time.perf_counter_ns() - before)
                before = time.perf_counter_ns()
                do_nothing(event)
                nothing.append(time.perf_counter_ns() - before)
            await asyncio.sleep(0.002)
        await keeper.flush()

    asyncio.run(run())
    keeper.close()
    return {
        "num_calls": len(spent),
        "append": {name: value / 1000 for name, value in quantiles(spent).items()},
        "an empty function": {name: value / 1000 for name, value in quantiles(nothing).items()},
    }


def do_nothing(event: Event) -> None:
    """What measuring costs."""


def measure_loop_lag(folder: Path, events: Sequence[Event], rate: int) -> dict[str, Any]:
    """How late an event loop runs that wants to run every millisecond, with the writer thread busy and idle."""
    keeper = open_keeper(folder)

    async def tick(seconds: float, appended: Sequence[Event]) -> dict[str, float]:
        lags: list[float] = []
        started_s, num_appended = time.perf_counter(), 0
        while (now_s := time.perf_counter()) - started_s < seconds:
            await asyncio.sleep(0.001)
            lags.append(1000 * (time.perf_counter() - now_s - 0.001))
            due = min(int((now_s - started_s) * rate * 2), len(appended))
            for event in appended[num_appended:due]:
                keeper.append(event)
            num_appended = max(num_appended, due)
        return quantiles(lags)

    lag: dict[str, list[dict[str, float]]] = {"idle": [], "writing": []}
    for _ in range(3):
        for name in ("idle", "writing"):
            lag[name].append(asyncio.run(tick(2.0, events if name == "writing" else ())))
    keeper.close()
    return {"exchanges_per_s": rate} | {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in lag.items()
    }


def measure_reading(folder: Path, events: Sequence[Event]) -> dict[str, Any]:
    keeper = open_keeper(folder)
    for event in events:
        keeper.append(event)
    keeper.close()
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    replay_s = min(timed(lambda: replay(Source.at(folder), Index())) for _ in range(3))
    iterate_s = min(timed(lambda: sum(1 for _ in keeper.iterate())) for _ in range(2))
    ids = [event.exchange.exchange_id for event in events if isinstance(event, Accepted)][::10]
    find_s = [timed(lambda id=id: keeper.find(id)) for id in ids]  # type: ignore[misc]
    return {
        "replay_mb_per_s": num_bytes / replay_s / 1e6,
        "iterate_mb_per_s": num_bytes / iterate_s / 1e6,
        "iterate_exchanges_per_s": len(events) / 2 / iterate_s,
        "find_in_index_us": {name: 1e6 * value for name, value in quantiles(find_s).items()},
        "find_by_scan_s": timed(lambda: RecordReader(folder).find(ids[0])),
        "index_bytes_per_exchange": index_bytes(folder),
    }


def index_bytes(folder: Path) -> float:
    tracemalloc.start()
    index = Index()
    before, _ = tracemalloc.get_traced_memory()
    replay(Source.at(folder), index)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(index)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {name: ordered[int(q * (len(ordered) - 1))] for name, q in at.items()} | {"max": ordered[-1]}


def arm_summary(spent: Sequence[Spent], num_records: int, num_bytes: int) -> dict[str, float]:
    ordered = sorted(one.wall_s for one in spent)
    at = {"p20": 0.2, "p50": 0.5, "p80": 0.8}
    summary = {f"{name}_s": ordered[round(q * (len(ordered) - 1))] for name, q in at.items()}
    return summary | {
        "cpu_s": statistics.median(one.cpu_s for one in spent),
        "records_per_s": num_records / summary["p50_s"],
        "mb_per_s": num_bytes / summary["p50_s"] / 1e6,
    }


def print_table(results: dict[str, Any]) -> None:
    throughput = results["throughput"]
    num_bytes, num_records = throughput["num_bytes"], throughput["num_records"]
    print(f"{num_records} records, {num_bytes / 1e6:.1f} MB, {throughput['num_groups']} groups")
    print(f"{'arm':<16}{'p20 s':>9}{'p50 s':>9}{'p80 s':>9}{'CPU s':>9}{'records/s':>12}{'MB/s':>8}")
    for name, arm in throughput["arms"].items():
        times = "".join(f"{arm[key]:9.3f}" for key in ("p20_s", "p50_s", "p80_s", "cpu_s"))
        print(f"{name:<16}{times}{arm['records_per_s']:12.0f}{arm['mb_per_s']:8.1f}")
    for name in ("keeper / raw", "keeper / raw, no fsync", "keeper / JSON lines", "raw again / raw"):
        r = throughput[name]
        print(f"{name:<24}{r['median']:.2f}  [{r['low']:.2f}, {r['high']:.2f}]")
    for title in ("append_us", "loop_lag_ms"):
        for name, row in results[title].items():
            if isinstance(row, dict):
                print(f"{title:<14}{name:<20}" + "".join(f"{key} {value:.2f}  " for key, value in row.items()))
    for title in ("cpu_us_per_exchange", "reading", "sealing", "recovery", "cold_query"):
        for name, value in results[title].items():
            print(f"{title:<20}{name:<28}{value}")


if __name__ == "__main__":
    main()
