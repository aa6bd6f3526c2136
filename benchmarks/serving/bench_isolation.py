"""Does the champion feel its shadow? Open-loop load at parts of its capacity, the shadow off, on, and naive, in turn.

    python -m benchmarks.serving.bench_isolation [--quick] [--mirror]
    python -m benchmarks.serving.bench_isolation [--sizes tiny base] [--loads 0.3 0.6 0.9] [--seconds S]

The full form ends in less than ten minutes on two cores, --quick in two; --mirror takes five more.

One server of the shared placement for each size, all arms on it: ``off`` (paused), ``on``, ``off again`` (A/A: its
ratio is the noise of the machine) and ``naive``: a driver that steps both engines in turn (benchmarks/serving/naive).
Requests arrive as a Poisson process, in every arm of a round at the same moments; times count from when a request
should have been sent (load.py). A block begins with RUN_IN_S of the same load that count for nothing, so that neither
the champion nor the shadow starts from rest. The challenger is another checkpoint of the same size; it scores and
generates.

With --mirror, afterwards, at the same rates: nginx before vLLM's own server, with and without its ``mirror`` to a
second one (mirror.py). What the champion feels of it is to be compared: each has a baseline of its own.

Ratios are of quantiles over all rounds, with 95% intervals from resampling rounds and requests within them. The share
of idle time is what the challenger worked, of what the champion left: an engine that steps small batches at once is
busy for far more than the load's part of the time. Capacity is measured first, with the shadow off.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import finish, machine, parser, percentiles
from benchmarks.serving import mirror, servers
from benchmarks.serving.load import QUANTILES, Seen, closed_loop, completion, latencies, open_loop, poisson, prompts
from benchmarks.serving.load import summary as summary_of
from benchmarks.serving.models import make

ARMS = ("off", "on", "off again", "naive")
PROXIES = ("nginx", "nginx mirror")
NUM_WORDS, NUM_TOKENS = 32, 32
NUM_ROUNDS = 3
RUN_IN_S = 0.8
SECONDS = {"tiny": 7.5, "base": 10.5}  # of each arm at each load; base answers a few requests a second
SETTLE_S = 1.0  # for what the mirror has yet to finish
KV_BYTES = {"tiny": 256 * 2**20, "base": 1024 * 2**20}
NUM_RESAMPLES = 400
MIN_BEYOND = 2  # values beyond a quantile; with fewer its ratio says nothing
CAPACITY_CONCURRENCY = 32
CAPACITY_REQUESTS = {"tiny": 600, "base": 96}


@dataclass(frozen=True)
class Moment:
    """What the server had done when it was asked."""

    at_s: float
    compared: int
    challenger: Mapping[str, Any]
    champion: Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """One arm for some seconds."""

    seen: list[Seen]
    began: Moment
    ended: Moment

    @property
    def seconds(self) -> float:
        """Between the two moments."""
        return self.ended.at_s - self.began.at_s

    @property
    def compared(self) -> int:
        """Exchanges that ended so."""
        return self.ended.compared - self.began.compared

    def challenger(self, figure: str) -> float:
        """How much this figure of its steps grew."""
        return float(self.ended.challenger[figure] - self.began.challenger[figure])

    @property
    def champion_busy_s(self) -> float:
        """What the champion's steps took."""
        return float(self.ended.champion["busy_s"] - self.began.champion["busy_s"])


@dataclass
class Bench:
    """A server under test, and its switches."""

    url: str
    naive: Path
    seeds: Iterator[int]

    def bodies(self) -> Iterator[bytes]:
        """Prompts that no arm has had before, so that none is helped by the prefix cache."""
        return (completion(prompt, NUM_TOKENS) for prompt in prompts(NUM_WORDS, next(self.seeds)))

    def status(self) -> dict[str, Any]:
        """The shadow's."""
        found: dict[str, Any] = httpx.get(f"{self.url}/shadow/status", timeout=120).raise_for_status().json()
        return found

    def set_arm(self, arm: str) -> None:
        """Everything of the arm before is gone when this returns: pausing sheds what waits and aborts what runs."""
        httpx.post(f"{self.url}/shadow/pause", timeout=60).raise_for_status()
        self.naive.unlink(missing_ok=True)
        while self.status()["counts"]["pending"]:
            time.sleep(0.05)
        if arm == "naive":
            self.naive.touch()
        if arm in ("on", "naive"):
            httpx.post(f"{self.url}/shadow/resume", timeout=60).raise_for_status()
        time.sleep(0.2)

    def block(self, arm: str, at_s: Sequence[float], seconds: float) -> Block:
        """Run one arm: requests at these moments, of which those after RUN_IN_S count."""
        self.set_arm(arm)
        return asyncio.run(self._block(at_s, seconds))

    async def _block(self, at_s: Sequence[float], seconds: float) -> Block:
        async with httpx.AsyncClient(timeout=120) as client:  # made before: it takes 25 ms of the loop that sends
            await self._moment(client)
            load = asyncio.create_task(open_loop(self.url, self.bodies(), at_s))
            await asyncio.sleep(RUN_IN_S)
            began = await self._moment(client)
            await asyncio.sleep(max(0.0, began.at_s + seconds - time.monotonic()))
            ended = await self._moment(client)
            return Block(counted(at_s, await load), began, ended)

    async def _moment(self, client: httpx.AsyncClient) -> Moment:
        status = (await client.get(f"{self.url}/shadow/status")).raise_for_status().json()
        steps = status["challengers"][0]["steps"], status["champion"]["steps"]
        return Moment(time.monotonic(), status["counts"]["compared"], *steps)

    def capacity(self, size: str) -> float:
        """Requests per second of the champion alone, as many at a time as it likes; the second of two runs."""
        self.set_arm("off")
        for _ in range(2):
            seen = asyncio.run(closed_loop(self.url, self.bodies(), CAPACITY_REQUESTS[size], CAPACITY_CONCURRENCY))
        return float(summary_of(seen)["requests_per_s"])


def main() -> None:
    """Every size and load; prints a table each; ends in one JSON line."""
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=["tiny", "base"])
    options.add_argument("--loads", nargs="+", type=float, default=[0.3, 0.6, 0.9])
    options.add_argument("--seconds", type=float, default=None, help="of each arm at each load")
    options.add_argument("--models", type=Path, default=Path("~/.cache/understudy/bench"))
    options.add_argument("--mirror", action="store_true", help="nginx's mirror to a second server, too")
    options.add_argument("--quick", action="store_true", help="the tiny model for a moment, to see that it works")
    given = options.parse_args()
    if given.quick:
        given.sizes, given.loads, given.seconds = ["tiny"], [0.5], 8.0
    why_not = mirror.why_not()
    if given.mirror and why_not:
        print(f"no mirror: {why_not}", flush=True)
    results: dict[str, Any] = {
        "benchmark": "isolation",
        "regime": {
            "prompt_words": NUM_WORDS, "generated_tokens": NUM_TOKENS, "rounds": NUM_ROUNDS,
            "run_in_s": RUN_IN_S, "seconds": given.seconds or SECONDS,
            "loop": "open, Poisson", "endpoint": "/v1/completions, streaming", "placement": "shared",
            "shadow": "every exchange, scored and generated",
        },
        "machine": machine(),
        "goal": {"p50": 1.01, "p99": 1.10},
        "sizes": {},
    }  # fmt: skip
    for size in given.sizes:
        models = [make(given.models.expanduser(), size, seed) for seed in (7, 8)]
        seconds = given.seconds or SECONDS[size]
        results["sizes"][size] = found = measure(size, models, given.loads, seconds)
        if given.mirror:
            found["mirror"] = why_not or measure_mirror(size, models, found, seconds)
    finish(results, given.out)


def measure(size: str, models: Sequence[str], loads: Sequence[float], seconds: float) -> dict[str, Any]:
    """All loads of one size, on one server."""
    with tempfile.TemporaryDirectory(prefix="bench-isolation-") as name:
        folder = Path(name)
        args = {"max_model_len": 1024, "kv_cache_memory_bytes": KV_BYTES[size]}
        config = {
            "champion": {"model": models[0], "name": "champ", "engine_args": args},
            "challenger": {"model": models[1], "name": "challenger", "engine_args": args},
            "record": {"url": str(folder / "record")},
        }
        naive = Path(__file__).parent / "naive"
        python_path = os.pathsep.join([str(naive), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"PYTHONPATH": python_path, "UNDERSTUDY_NAIVE": str(folder / "naive")}
        with servers.understudy(config, folder, environment=environment) as url:
            bench = Bench(url, folder / "naive", count(1000))
            capacity = bench.capacity(size)
            print(f"\n{size}: the champion's capacity is {capacity:.1f} requests/s", flush=True)
            found = {f"{load:g}": one_load(size, bench, load, load * capacity, seconds) for load in loads}
    return {"capacity_requests_per_s": capacity, "loads": found}


def measure_mirror(size: str, models: Sequence[str], ours: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """All loads of one size at the rates that ours had, without and with nginx's mirror."""
    args = {"max_model_len": 1024, "kv_cache_memory_bytes": KV_BYTES[size], "enable_prefix_caching": True}
    bodies = (completion(prompt, NUM_TOKENS) for prompt in prompts(NUM_WORDS, 999))
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-mirror-") as name,
        mirror.two_servers((models[0], models[1]), args, Path(name)) as (champion, challenger),
        mirror.mirror(champion, challenger, Path(name) / "nginx") as urls,
    ):
        for url in urls:
            asyncio.run(closed_loop(url, bodies, CAPACITY_REQUESTS[size] // 4, CAPACITY_CONCURRENCY))  # both warm
        for load, row in ours["loads"].items():
            rounds: dict[str, list[list[Seen]]] = {arm: [] for arm in PROXIES}
            for number in range(NUM_ROUNDS):
                at_s = poisson(row["requests_per_s"], RUN_IN_S + seconds / NUM_ROUNDS, seed=number)
                for arm, url in sorted(zip(PROXIES, urls, strict=True), reverse=bool(number % 2)):
                    rounds[arm].append(counted(at_s, asyncio.run(open_loop(url, bodies, at_s))))
                    time.sleep(SETTLE_S)
            found[load] = {
                "arms": {arm: latency_row(seen) for arm, seen in rounds.items()},
                "ratios": {"nginx mirror / nginx": ratios(rounds["nginx mirror"], rounds["nginx"])},
            }
            print(f"\n{size} at {float(load):.0%}, behind nginx", flush=True)
            show_rows(found[load])
    return found


def counted(at_s: Sequence[float], seen: Sequence[Seen]) -> list[Seen]:
    """Those that were to be sent after the run-in."""
    return [each for at, each in zip(at_s, seen, strict=True) if at >= RUN_IN_S]


def one_load(size: str, bench: Bench, load: float, rate_per_s: float, seconds: float) -> dict[str, Any]:
    """All arms in rounds; the order turns from round to round."""
    blocks: dict[str, list[Block]] = {arm: [] for arm in ARMS}
    for number in range(NUM_ROUNDS):
        each_s = seconds / NUM_ROUNDS
        at_s = poisson(rate_per_s, RUN_IN_S + each_s, seed=number + int(100 * load))
        for arm in (*ARMS[number:], *ARMS[:number]):
            blocks[arm].append(bench.block(arm, at_s, each_s))
    result: dict[str, Any] = {
        "requests_per_s": rate_per_s,
        "arms": {arm: row_of(blocks[arm]) for arm in ARMS},
        "ratios": {
            f"{arm} / off": ratios(seen_in(blocks[arm]), seen_in(blocks["off"])) for arm in ARMS if arm != "off"
        },
    }
    show(size, load, result)
    return result


def row_of(blocks: Sequence[Block]) -> dict[str, Any]:
    """One arm."""
    seconds = sum(block.seconds for block in blocks)
    busy = sum(block.champion_busy_s for block in blocks)
    worked = sum(block.challenger("busy_s") for block in blocks)
    slices = sum(block.challenger("slices") for block in blocks)
    return latency_row(seen_in(blocks)) | {
        "champion_busy_fraction": busy / seconds,
        "share_of_idle_time": worked / max(1e-9, seconds - busy),
        "challenger_tokens_per_s": sum(block.challenger("tokens") for block in blocks) / seconds,
        "compared_per_s": sum(block.compared for block in blocks) / seconds,
        "mean_slice_ms": 1e3 * worked / max(1.0, slices),
        "slices_over_limit": sum(block.challenger("over_limit") for block in blocks) / max(1.0, slices),
        "step_tokens_allowed": [block.ended.challenger["max_tokens"] for block in blocks],
    }


def seen_in(blocks: Sequence[Block]) -> list[list[Seen]]:
    """The requests, round by round."""
    return [block.seen for block in blocks]


def latency_row(rounds: Sequence[Sequence[Seen]]) -> dict[str, Any]:
    """What the clients of one arm saw."""
    seen = [each for one in rounds for each in one]
    return {
        "requests": len(seen),
        "failed": sum(not each.ok for each in seen),
        **{name: percentiles(values, QUANTILES) for name, values in latencies(seen).items() if values},
    }


def ratios(arm: Sequence[Sequence[Seen]], base: Sequence[Sequence[Seen]]) -> dict[str, dict[str, float]]:
    """Of each quantile of each latency: the ratio, and its interval. Both have the same rounds."""
    mine, theirs = [latencies(seen) for seen in arm], [latencies(seen) for seen in base]
    return {
        f"{name} p{at}": quantile_ratio([each[name] for each in mine], [each[name] for each in theirs], at)
        for name in ("ttft_ms", "itl_ms", "end_to_end_ms")
        for at in QUANTILES
        if sum(len(each[name]) for each in theirs) * (100 - at) >= 100 * MIN_BEYOND
    }


def quantile_ratio(arm: Sequence[list[float]], base: Sequence[list[float]], at: int) -> dict[str, float]:
    """Ratio of a quantile of all rounds; the interval resamples rounds (as pairs) and values within each."""
    chance = random.Random(at)

    def quantile(rounds: Sequence[Sequence[float]]) -> float:
        return percentiles([value for values in rounds for value in values], (at,))[f"p{at}"]

    drawn = []
    for _ in range(NUM_RESAMPLES):
        pairs = chance.choices(list(zip(arm, base, strict=True)), k=len(arm))
        mine = quantile([chance.choices(a, k=min(len(a), 2000)) for a, _ in pairs if a])
        drawn.append(mine / quantile([chance.choices(b, k=min(len(b), 2000)) for _, b in pairs if b]))
    low, high = statistics.quantiles(drawn, n=40)[0], statistics.quantiles(drawn, n=40)[-1]
    return {"ratio": quantile(arm) / quantile(base), "low": low, "high": high}


def show(size: str, load: float, result: Mapping[str, Any]) -> None:
    """The rows of one load."""
    print(f"\n{size} at {load:.0%} of capacity ({result['requests_per_s']:.1f} requests/s)", flush=True)
    show_rows(result)
    for arm, row in result["arms"].items():
        print(
            f"  {arm:<13}champion busy {row['champion_busy_fraction']:.0%}, idle time used "
            f"{row['share_of_idle_time']:.0%}, slices of {row['mean_slice_ms']:.2f} ms   "
            f"{row['challenger_tokens_per_s']:.0f} tokens/s, {row['compared_per_s']:.1f} compared/s",
            flush=True,
        )


def show_rows(result: Mapping[str, Any]) -> None:
    """What the clients of each arm saw, and the ratios."""
    for arm, row in result["arms"].items():
        quantiles = "   ".join(
            f"{label} {'/'.join(f'{value:.1f}' for value in row[name].values())}"
            for label, name in (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("end-to-end", "end_to_end_ms"))
        )
        print(
            f"  {arm:<13}{row['requests']:5d} requests   {quantiles} ms (p50/p95/p99)   failed {row['failed']}",
            flush=True,
        )
    for name, found in result["ratios"].items():
        shown = "   ".join(f"{key} {r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for key, r in found.items())
        print(f"  {name:<16}{shown}", flush=True)


if __name__ == "__main__":
    main()
