"""Ten thousand requests at four times the capacity: does the server behave as vLLM's own, and is memory flat?

    python -m benchmarks.serving.bench_pressure [--requests N] [--overload X] [--quick] [--out FILE.json]

Open loop (Poisson), the tiny model, a few tokens each, the shadow on. First all of it goes to vLLM's own server: both
must answer with the same status codes, each at as many times its own capacity. Meanwhile the resident memory of each
server's API process (ours is the replica) and engine process is sampled once a second, and the lane's counts as often
as status answers; beside the JSON file an SVG shows memory over time. The slope is fitted over the second half of the
run, in MiB per thousand requests.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.common import finish, machine, parser
from benchmarks.serving import servers
from benchmarks.serving.load import Seen, closed_loop, completion, open_loop, poisson, prompts, summary
from benchmarks.serving.models import make
from benchmarks.serving.plot import lines_svg

ENGINE_ARGS = {"max_model_len": 512, "kv_cache_memory_bytes": 256 * 2**20}
NUM_WORDS, NUM_TOKENS = 8, 4
SAMPLE_EVERY_S = 1.0
MIB = 2**20
ROLES = {
    "understudy.engines.host": "engine process",
    "ServeReplica": "replica",
    "openai.api_server": "vLLM's API server",
    "VLLM::EngineCore": "vLLM's engine process",
}


@dataclass
class Sampler:
    """Resident memory of processes once a second, in one thread; in another the lane's counts, where there is one."""

    url: str | None
    processes: dict[str, psutil.Process]
    at_s: list[float] = field(default_factory=list)
    rss_mib: dict[str, list[float]] = field(default_factory=dict)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the time of the block."""
        jobs = [self._weigh] if self.url is None else [self._weigh, self._ask]
        threads = [threading.Thread(target=each) for each in jobs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _weigh(self) -> None:
        started_s = time.monotonic()
        while not self._stop.wait(SAMPLE_EVERY_S):
            weighed = {role: process.memory_info().rss / MIB for role, process in self.processes.items()}
            self.at_s.append(time.monotonic() - started_s)
            for role, rss_mib in weighed.items():
                self.rss_mib.setdefault(role, []).append(rss_mib)

    def _ask(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            with suppress(httpx.HTTPError):  # under this load status may be late
                self.statuses.append(httpx.get(f"{self.url}/shadow/status", timeout=60).json())


def main() -> None:
    """Load vLLM's own server, then ours; table, SVG and JSON."""
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--overload", type=float, default=4.0, help="times the capacity")
    options.add_argument("--models", type=Path, default=Path("~/.cache/understudy/bench"))
    options.add_argument("--quick", action="store_true", help="600 requests, to see that it works")
    given = options.parse_args()
    if given.quick:
        given.requests = 600
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection for each request that waits
    models = [make(given.models.expanduser(), "tiny", seed) for seed in (7, 8)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-pressure-")))
        with servers.vllm(models[0], ENGINE_ARGS, folder) as url:
            beside = Sampler(None, processes())
            with beside.running():
                theirs = press(url, given.requests, given.overload)
        config = {
            "champion": {"model": models[0], "name": "champ", "engine_args": ENGINE_ARGS},
            "challenger": {"model": models[1], "name": "challenger", "engine_args": ENGINE_ARGS},
            "record": {"url": str(folder / "record")},
        }
        url = stack.enter_context(servers.understudy(config, folder))
        sampler = Sampler(url, processes())
        with sampler.running():
            ours = press(url, given.requests, given.overload)
            settled = settle(url)
    results = {
        "benchmark": "pressure",
        "regime": {
            "requests": given.requests, "overload": given.overload, "prompt_words": NUM_WORDS,
            "generated_tokens": NUM_TOKENS, "model": "tiny", "loop": "open, Poisson", "placement": "shared",
        },
        "machine": machine(),
        "vllm": theirs,
        "understudy": ours,
        "counts": settled,
        "memory": memory(sampler, given.requests) | memory(beside, given.requests),
        "equation_held_in": f"{sum(adds_up(each['counts']) for each in sampler.statuses)} of {len(sampler.statuses)}",
    }  # fmt: skip
    show(results)
    if given.out is not None:
        lines_svg(given.out.with_suffix(".svg"), "Resident memory, MiB", "seconds", sampler.at_s, sampler.rss_mib)
    finish(results, given.out)


def press(url: str, num_requests: int, overload: float) -> dict[str, Any]:
    """Measure the capacity, then send ``num_requests`` at ``overload`` times of it."""
    bodies = endless(count(500))
    asyncio.run(closed_loop(url, bodies, 64, 32))
    capacity = summary(asyncio.run(closed_loop(url, bodies, 512, 64)))["requests_per_s"]
    rate = capacity * overload
    at_s = poisson(rate, 2.0 * num_requests / rate, seed=1)[:num_requests]
    seen = asyncio.run(open_loop(url, bodies, at_s))
    return {"capacity_requests_per_s": capacity, "sent_per_s": rate, **outcomes(seen), **summary(seen)}


def endless(seeds: Iterator[int]) -> Iterator[bytes]:
    """Bodies, with new prompts all the time."""
    return (completion(prompt, NUM_TOKENS) for prompt in prompts(NUM_WORDS, next(seeds)))


def outcomes(seen: Sequence[Seen]) -> dict[str, Any]:
    """Status codes and errors with their counts."""
    return {
        "status_codes": dict(Counter(str(each.status) for each in seen)),
        "errors": dict(Counter(each.error for each in seen if each.error)),
    }


def settle(url: str) -> dict[str, Any]:
    """The counts once nothing is pending."""
    while True:
        counts: dict[str, Any] = httpx.get(f"{url}/shadow/status", timeout=120).json()["counts"]
        if not counts["pending"]:
            return counts
        time.sleep(0.5)


def processes() -> dict[str, psutil.Process]:
    """Those that this benchmark's server has started, by their role."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        line = " ".join(process.cmdline())
        found |= {role: process for word, role in ROLES.items() if word in line}
    return found


def memory(sampler: Sampler, num_requests: int) -> dict[str, Any]:
    """By process: where it began, its highest, its end, and the slope of the second half."""
    made = {}
    for role, values in sampler.rss_mib.items():
        half = len(values) // 2
        at_s, later = sampler.at_s[half:], values[half:]
        per_s = slope(at_s, later)
        made[role] = {
            "first_mib": values[0], "highest_mib": max(values), "last_mib": values[-1],
            "slope_mib_per_1000_requests": per_s * sampler.at_s[-1] / num_requests * 1000,
        }  # fmt: skip
    return made


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((each - mean_x) ** 2 for each in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0


def adds_up(counts: dict[str, Any]) -> bool:
    """Law 4."""
    ended = counts["compared"] + counts["expired"] + counts["cancelled"]
    ended += sum(counts["shed"].values()) + sum(counts["failed"].values())
    return bool(counts["sampled"] == counts["pending"] + ended)


def show(results: dict[str, Any]) -> None:
    """What was seen, in lines."""
    for name in ("vllm", "understudy"):
        row = results[name]
        print(
            f"{name:<12}capacity {row['capacity_requests_per_s']:.0f}/s, sent {row['sent_per_s']:.0f}/s, "
            f"status codes {row['status_codes']}, errors {row['errors']}, end-to-end p50 "
            f"{row['end_to_end_ms']['p50'] / 1e3:.1f} s",
        )
    print(f"lane        {results['counts']}; the counts added up in {results['equation_held_in']} looks")
    for role, row in results["memory"].items():
        print(f"{role:<23}" + "   ".join(f"{key} {value:.1f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
