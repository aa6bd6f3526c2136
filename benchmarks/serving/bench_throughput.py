"""As fast as vLLM alone? Our server with the shadow off against vLLM's own server, closed loop, streaming.

    python -m benchmarks.serving.bench_throughput [--sizes tiny base] [--concurrency 1 8 32 128] [--seconds S] [--quick]

Both servers are up all the time, in turn one of them is loaded and the other idles. Arms:

    vllm          vLLM's own server, with its own thread binding; access logs are off in both
    off           ours with a challenger loaded; no request is sampled (each opts out, as with shadow.sample 0)
    paused        the same with sampling on and the kill switch pulled: each exchange is recorded, and shed
    vllm again    the same process as vllm: its ratio is the noise of the machine (A/A)

The order of the arms turns round from block to block. Each concurrency of each size has its time, and as many blocks as
fit in; all of it ends within ten minutes. At a concurrency of 128 ``base`` takes a minute a block: it is left out.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import finish, machine, parser, ratio
from benchmarks.serving import servers
from benchmarks.serving.load import NO_HEADERS, Seen, closed_loop, completion, latencies, prompts, summary
from benchmarks.serving.models import make

GOAL, STRETCH = 0.98, 0.995
ARMS = ("vllm", "off", "paused", "vllm again")
HEADERS = {"off": {"x-understudy-shadow": "off"}}
ENGINE_ARGS = {"max_model_len": 1024, "kv_cache_memory_bytes": 512 * 2**20, "max_num_seqs": 128}
NUM_WORDS, NUM_TOKENS = 32, 32
SECONDS_OF_A_BLOCK = {"tiny": 2.0, "base": 3.0}
CONCURRENCIES = {"tiny": (1, 8, 32, 128), "base": (1, 8, 32)}
MIN_BLOCKS = 2


def main() -> None:
    """Every size: start both servers, load them in turn, print the table; end in one JSON line."""
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=["tiny", "base"])
    options.add_argument("--concurrency", nargs="+", type=int, help="for every size; else 1 8 32, and 128 for tiny")
    options.add_argument("--seconds", type=float, default=50.0, help="for each concurrency of each size")
    options.add_argument("--models", type=Path, default=Path("~/.cache/understudy/bench"))
    options.add_argument("--quick", action="store_true", help="tiny, a few blocks, to see that it works")
    given = options.parse_args()
    if given.quick:
        given.sizes, given.seconds = ["tiny"], 10.0
    results: dict[str, Any] = {
        "benchmark": "throughput",
        "regime": {
            "prompt_words": NUM_WORDS, "generated_tokens": NUM_TOKENS, "loop": "closed",
            "endpoint": "/v1/completions, streaming", "shadow": "off or paused, one challenger loaded",
            "placement": "shared",
        },
        "machine": machine(),
        "goal": GOAL,
        "stretch": STRETCH,
        "sizes": {},
    }  # fmt: skip
    for size in given.sizes:
        model = make(given.models.expanduser(), size)
        results["sizes"][size] = measure(size, model, given.concurrency or CONCURRENCIES[size], given.seconds)
    finish(results, given.out)


def measure(size: str, model: str, concurrencies: Sequence[int], seconds: float) -> dict[str, Any]:
    """All concurrencies of one model."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-throughput-")))
        config = {
            "champion": {"model": model, "name": "champ", "engine_args": ENGINE_ARGS},
            "challenger": {"model": model, "name": "challenger", "engine_args": ENGINE_ARGS | {"max_num_seqs": 16}},
            "record": {"url": str(folder / "record")},
        }
        ours = stack.enter_context(servers.understudy(config, folder))
        httpx.post(f"{ours}/shadow/pause", timeout=60).raise_for_status()
        theirs = stack.enter_context(servers.vllm(model, ENGINE_ARGS, folder))
        urls = {"vllm": theirs, "off": ours, "paused": ours, "vllm again": theirs}
        return {
            str(concurrency): asyncio.run(compare(size, urls, concurrency, seconds)) for concurrency in concurrencies
        }


async def compare(size: str, urls: dict[str, str], concurrency: int, seconds: float) -> dict[str, Any]:
    """Blocks of one concurrency, the arms in turn; the first block of each warms up and is not counted."""
    started_s = time.monotonic()
    blocks: dict[str, list[list[Seen]]] = {arm: [] for arm in ARMS}
    num_requests = max(2 * concurrency, 4)
    seeds = count(1000 * concurrency)  # no block has prompts that another had before: the prefix cache helps nobody
    for block in count():
        if block > MIN_BLOCKS and time.monotonic() - started_s > seconds * block / (
            block + 1
        ):  # one more would be late
            break
        for arm in ARMS if block % 2 else ARMS[::-1]:
            bodies = (completion(prompt, NUM_TOKENS) for prompt in prompts(NUM_WORDS, next(seeds)))
            seen = await closed_loop(urls[arm], bodies, num_requests, concurrency, HEADERS.get(arm, NO_HEADERS))
            if block:
                blocks[arm].append(seen)
        if not block:  # as many requests as fill the block
            num_requests = max(num_requests, int(SECONDS_OF_A_BLOCK[size] * summary(seen)["requests_per_s"]))
    result = {
        "blocks": len(blocks["vllm"]),
        "requests_in_a_block": num_requests,
        "arms": {arm: row_of([summary(seen) for seen in blocks[arm]]) for arm in ARMS},
        "ratios": {f"{arm} / vllm": ratios(blocks[arm], blocks["vllm"]) for arm in ARMS if arm != "vllm"},
    }
    show(size, concurrency, result)
    return result


def row_of(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the blocks of an arm."""
    return {
        "requests_per_s": statistics.median(each["requests_per_s"] for each in summaries),
        "failed": sum(each["failed"] for each in summaries),
        **{
            name: {at: statistics.median(each[name][at] for each in summaries) for at in summaries[0][name]}
            for name in ("ttft_ms", "itl_ms", "end_to_end_ms")
        },
    }


def ratios(arm: Sequence[list[Seen]], base: Sequence[list[Seen]]) -> dict[str, dict[str, float]]:
    """Medians of the ratios of blocks that stood side by side, with bootstrap intervals."""
    pairs = list(zip(arm, base, strict=True))

    def median_of(name: str, seen: list[Seen]) -> float:
        return statistics.median(latencies(seen)[name])

    found = {"requests_per_s": ratio(*zip(*((rate(a), rate(b)) for a, b in pairs), strict=True))}
    for name in ("ttft_ms", "itl_ms", "end_to_end_ms"):
        found[f"{name} p50"] = ratio(*zip(*((median_of(name, a), median_of(name, b)) for a, b in pairs), strict=True))
    return found


def rate(seen: list[Seen]) -> float:
    """Answered requests per second."""
    return float(summary(seen)["requests_per_s"])


def show(size: str, concurrency: int, result: dict[str, Any]) -> None:
    """The rows of one concurrency."""
    blocks, requests = result["blocks"], result["requests_in_a_block"]
    print(f"\n{size}, concurrency {concurrency}, {blocks} blocks of {requests} requests", flush=True)
    for arm, row in result["arms"].items():
        print(
            f"  {arm:<12}{row['requests_per_s']:8.1f} requests/s   TTFT p50 {row['ttft_ms']['p50']:7.1f} ms"
            f"   ITL p50 {row['itl_ms']['p50']:6.2f} ms   end-to-end p50 {row['end_to_end_ms']['p50']:7.1f} ms"
            f"   failed {row['failed']}",
            flush=True,
        )
    for name, found in result["ratios"].items():
        shown = "   ".join(f"{key} {r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for key, r in found.items())
        print(f"  {name:<20}{shown}", flush=True)


if __name__ == "__main__":
    main()
