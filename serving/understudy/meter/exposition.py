"""GET /metrics: ours, and vLLM's own of every engine, told apart by ``role`` and ``model``.

vLLM labels its metrics with the served model's name only, and the same names exist once for each engine. One family of
each name comes out, with all engines' samples in it, as the text format wants it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from understudy.meter.histogram import Histogram
from understudy.meter.metrics import METRICS, Labels, Metric

VLLM = "vllm:"


class PrometheusSink:
    """Our metrics in a registry of their own. Those without labels are there, as 0, from the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics: Mapping[str, Any] = {metric.name: self._new(metric) for metric in METRICS}

    def add(self, metric: Metric, amount: float, labels: Labels) -> None:
        """See metrics.Sink."""
        self._of(metric, labels).inc(amount)

    def set(self, metric: Metric, value: float, labels: Labels) -> None:
        """See metrics.Sink."""
        self._of(metric, labels).set(value)

    def observe(self, metric: Metric, value: float, labels: Labels) -> None:
        """See metrics.Sink."""
        self._metrics[metric.name].observe(value, labels)

    def _of(self, metric: Metric, labels: Labels) -> Any:
        found = self._metrics[metric.name]
        return found.labels(**labels) if metric.labels else found

    def _new(self, metric: Metric) -> Any:
        words = f"{metric.meaning} ({metric.unit})"
        match metric.kind:
            case "counter":
                return Counter(metric.name.removesuffix("_total"), words, metric.labels, registry=self.registry)
            case "gauge":
                return Gauge(metric.name, words, metric.labels, registry=self.registry)
            case "histogram":
                return Histogram(metric.name, words, metric.labels, metric.buckets, self.registry)


@dataclass(frozen=True, slots=True)
class EngineRegistry:
    """Where vLLM keeps the metrics of one engine."""

    role: str
    model: str
    registry: Collector


class Exposition(Collector):
    """Every family once: what is not vLLM's as it is, vLLM's with the two labels more."""

    def __init__(self, ours: Collector, engines: Sequence[EngineRegistry]) -> None:
        self._ours = ours
        self._engines = engines

    def collect(self) -> Iterator[Family]:
        """For prometheus_client."""
        yield from self._ours.collect()
        families: dict[str, Family] = {}
        for engine in self._engines:
            for family in engine.registry.collect():
                if family.name.startswith(VLLM):
                    _add(families, family, {"role": engine.role, "model": engine.model})
                elif engine.role == "champion":  # the process, Python, HTTP: the registry of vLLM's server has them
                    _add(families, family, {})
        yield from families.values()

    def restricted_registry(self, names: Iterable[str]) -> _Restricted:
        """``/metrics?name[]=...``."""
        return _Restricted(self, frozenset(names))


class _Restricted(Collector):
    def __init__(self, everything: Exposition, names: frozenset[str]) -> None:
        self._everything = everything
        self._names = names

    def collect(self) -> Iterator[Family]:
        for family in self._everything.collect():
            samples = [sample for sample in family.samples if sample.name in self._names]
            if samples:
                found = Family(family.name, family.documentation, family.type)
                found.samples = samples
                yield found


def _add(families: dict[str, Family], family: Family, labels: Labels) -> None:
    known = families.setdefault(family.name, Family(family.name, family.documentation, family.type, family.unit))
    known.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]


def metrics_app(exposition: Exposition) -> Any:
    """The ASGI app of /metrics.

    Writing two engines' metrics takes some 10 ms, so it is done in a thread: the event loop streams answers.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        names = request.query_params.getlist("name[]")
        wanted: Any = exposition.restricted_registry(names) if names else exposition
        body = await asyncio.to_thread(encode, wanted)
        await Response(body, headers={"content-type": content_type})(scope, receive, send)

    return answer
