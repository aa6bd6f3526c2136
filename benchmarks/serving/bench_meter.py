"""What the meter takes of the replica's event loop.

    python -m benchmarks.serving.bench_meter [--out FILE.json]

No engine is started: what the replica does for each step of an engine, for each output, every two seconds and for each
scrape, with vLLM's own objects. Arms:

    traffic     our count of one engine step (champion and challengers)
    vllm        vLLM's PrometheusStatLogger for the same step: what a challenger's statistics add, by its batch
    observe     metrics of one compared exchange, with 63 gaps of a stream (off the path, in the lane)
    tick        one window of two models with everything published
    scrape      writing /metrics of two engines (in a thread), and vLLM's own /metrics of one, in turn
"""

from __future__ import annotations

import tempfile
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, generate_latest

from benchmarks.common import finish, machine, parser, percentiles, ratio
from benchmarks.serving.models import make
from understudy.config import Limits, Prices
from understudy.engines.registry import own_registry
from understudy.lane.guard import Guard
from understudy.meter.caps import Caps
from understudy.meter.exposition import EngineRegistry, Exposition, PrometheusSink
from understudy.meter.gaps import gaps_between
from understudy.meter.host import HostSource
from understudy.meter.meter import Group, Meter
from understudy.meter.metrics import Metrics
from understudy.meter.publish import ExchangeMetrics, publish_meter
from understudy.meter.sampler import Sampler
from understudy.meter.traffic import Traffic
from understudy.types import Answer, Exchange, Measured, Observation, Outcome, RequestFacts, Timings

BATCHES = (1, 4, 16)


@dataclass
class Counted:
    """An engine that only counts."""

    name: str
    role: str
    pid: int = 1
    drafted: bool = False
    traffic: Traffic = field(default_factory=Traffic)

    def busy_s(self) -> float:
        """None used."""
        return 0.0

    async def memory(self) -> dict[str, Any]:
        """None known."""
        return {}


def microseconds(what: Callable[[], object], number: int, repeats: int) -> list[float]:
    """Of one call, ``repeats`` times over ``number`` calls."""
    return [seconds / number * 1e6 for seconds in timeit.repeat(what, number=number, repeat=repeats)]


def step(batch: int) -> tuple[Any, Any]:
    """What vLLM's core tells of a decode step."""
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    told = IterationStats()
    told.inter_token_latencies_iter, told.num_generation_tokens = [0.01] * batch, batch
    return SchedulerStats(num_running_reqs=batch), told


def compared() -> Exchange:
    """A streamed answer of 64 tokens."""
    gaps = gaps_between([0.01 * index for index in range(64)])
    answer = Answer(tuple(range(64)), "", "stop")
    times = Timings(0.0, 0.1, 0.7)
    seen = Observation(
        "m", Outcome.FINISHED, (1,), (answer,), times, measured=Measured(0.0, 0.1, 0.6, 0, 4.0, gaps)
    )  # fmt: skip
    return Exchange("x", "x", 0.0, RequestFacts(), None, None, seen)


def measure(repeats: int) -> dict[str, Any]:
    """Every arm, microseconds but for the scrapes."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder), "tiny")
        config = AsyncEngineArgs(model=model, enforce_eager=True, kv_cache_memory_bytes=2**26).create_engine_config()
        champion = PrometheusStatLogger(config)
        with own_registry() as registry:
            challenger = PrometheusStatLogger(config)
    traffic, sink = Traffic(), PrometheusSink()
    metrics, exchange = Metrics([sink]), compared()
    heard = ExchangeMetrics(metrics)
    limits, guard = Limits(), Guard()
    engines = [Counted("a", "champion"), Counted("b", "challenger")]
    meter = Meter([Group(engines, ("cpu",))], Sampler(HostSource()), Prices(), Caps(limits, lambda: 0.0), guard)
    meter.after_tick = lambda: publish_meter(meter, metrics)
    told = step(4)
    results: dict[str, Any] = {"traffic_us": percentiles(microseconds(lambda: traffic.record(*told), 20_000, repeats))}
    for batch in BATCHES:
        for logger in (champion, challenger):
            logger.record(*step(batch))
        now = step(batch)
        times = microseconds(lambda now=now: challenger.record(*now), 1000, repeats)  # type: ignore[misc]
        results[f"vllm_batch_{batch}_us"] = percentiles(times)
    results["observe_us"] = percentiles(microseconds(lambda: heard.accepted(exchange, ["b"], {}), 500, repeats))
    results["tick_us"] = percentiles(microseconds(meter.tick, 50, repeats))
    both = [EngineRegistry("champion", "a", REGISTRY), EngineRegistry("challenger", "b", registry)]
    exposition = Exposition(sink.registry, both)
    ours, theirs = [], []
    for _ in range(repeats):
        ours += microseconds(lambda: generate_latest(exposition), 3, 1)
        theirs += microseconds(lambda: generate_latest(REGISTRY), 3, 1)
    results["scrape_ms"] = {name: value / 1e3 for name, value in percentiles(ours).items()}
    results["vllm_scrape_ms"] = {name: value / 1e3 for name, value in percentiles(theirs).items()}
    results["scrape_over_vllm"] = ratio(ours, theirs)
    return results


def main() -> None:
    """Measure, print a table, end in one JSON line."""
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=15)
    chosen = arguments.parse_args()
    results = measure(chosen.repeats)
    for name, figures in results.items():
        print(f"{name:<20}", "  ".join(f"{key} {value:,.2f}" for key, value in figures.items()))
    finish({"benchmark": "meter", "machine": machine(), **results}, chosen.out)


if __name__ == "__main__":
    main()
