"""The meter put together for one replica: sampler, caps, meter, metrics and the app of /metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from prometheus_client.registry import Collector

from understudy.config import Config
from understudy.errors import MeterError
from understudy.lane.guard import Guard
from understudy.lane.lane import Witnesses
from understudy.meter.caps import Caps
from understudy.meter.exposition import EngineRegistry, Exposition, PrometheusSink, metrics_app
from understudy.meter.host import HostSource
from understudy.meter.meter import Group, Meter, Metered
from understudy.meter.metrics import Metrics, Sink
from understudy.meter.nvml import NvmlSource
from understudy.meter.publish import ExchangeMetrics, publish_meter, publish_status
from understudy.meter.reading import Source
from understudy.meter.sampler import Sampler
from understudy.meter.taken import Scale
from understudy.meter.traces import exporting
from understudy.types import Ending, Exchange, Observation

log = logging.getLogger(__name__)


NO_SCALE = Scale()
Weighed = Callable[[Observation, str], Observation]


class Engine(Metered, Protocol):
    """An engine with vLLM's metrics."""

    @property
    def registry(self) -> Collector:
        """Where vLLM keeps them."""


class Station:
    """Args: the configuration, for each engine process its devices and engines, the guard, and more sinks (Ray's)."""

    def __init__(
        self,
        config: Config,
        engines: Sequence[tuple[Sequence[int], Sequence[Engine]]],
        guard: Guard,
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        prometheus = PrometheusSink()
        self.caps = Caps(config.shadow.limits, clock)
        self._metrics = Metrics([prometheus, *sinks])
        self._guard = guard
        endpoint, full = config.traces.endpoint, config.record.text == "full"
        self._traces = None if endpoint is None else exporting(endpoint, full=full)
        self._facts: Callable[[], Mapping[str, Any]] = dict
        self._prices, self._token_prices = config.prices, config.compare.token_prices
        self._scales: dict[str, tuple[Mapping[str, Any] | None, Scale]] = {}
        source, groups = watched(engines)
        self.meter = Meter(groups, Sampler(source), config.prices, self.caps, guard, clock)
        self.meter.after_tick = self._publish
        registries = [EngineRegistry(each.role, each.name, each.registry) for _, members in engines for each in members]
        self.app = metrics_app(Exposition(prometheus.registry, registries))

    async def start(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Begin. ``facts`` is asked at every tick for what publish_status needs; it must be cheap."""
        self._facts = facts
        await self.meter.start()

    async def close(self) -> None:
        """End. Idempotent."""
        await self.meter.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    def heard_with(self, others: Witnesses) -> Heard:
        """The lane's witnesses: ``others`` first, then metrics and traces, whose faults do not reach them."""
        more: list[Witnesses] = [ExchangeMetrics(self._metrics)]
        if self._traces is not None:
            more.append(self._traces)
        return Heard(others, more, self._guard, self.weighed)

    def weighed(self, seen: Observation, name: str) -> Observation:
        """An observation of the model of this name with what it took; one of a model elsewhere as it is (a replay)."""
        return replace(seen, taken=self._scale(name).weigh(seen)) if name in self.meter.memory else seen

    def _scale(self, name: str) -> Scale:
        """One for as long as the meter has no newer word of its memory: asked twice an exchange, in the event loop."""
        memory = self.meter.memory[name]
        made_of, scale = self._scales.get(name, (None, NO_SCALE))
        if made_of is not memory:
            num_devices = self.meter.num_devices(name)
            block = memory.get("kv_block_tokens"), memory.get("kv_block_bytes")
            scale = Scale(self._prices, self._token_prices, num_devices, *block)
            self._scales[name] = memory, scale
        return scale

    def _publish(self) -> None:
        publish_meter(self.meter, self._metrics)
        publish_status(self._facts(), self._metrics)


class Heard:
    """Lane witnesses in a row: the record keeper, whose faults are the lane's business, and then the others.

    Each hears of observations with what they took; of one that cannot be weighed, without.
    """

    def __init__(self, first: Witnesses, others: Sequence[Witnesses], guard: Guard, weighed: Weighed) -> None:
        self._first = first
        self._others = others
        self._guard = guard
        self._weighed = weighed

    def accepted(self, exchange: Exchange, challengers: Sequence[str], offered: Mapping[str, int]) -> None:
        """See lane.Witnesses."""
        with self._guard("meter"):
            exchange = replace(exchange, champion=self._weighed(exchange.champion, exchange.champion.model))
        self._first.accepted(exchange, challengers, offered)
        for other in self._others:
            with self._guard("metrics"):
                other.accepted(exchange, challengers, offered)

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        """See lane.Witnesses."""
        with self._guard("meter"):
            if ending.challenger is not None:
                ending = replace(ending, challenger=self._weighed(ending.challenger, challenger))
        self._first.ended(exchange, challenger, ending)
        for other in self._others:
            with self._guard("metrics"):
                other.ended(exchange, challenger, ending)


def watched(processes: Sequence[tuple[Sequence[int], Sequence[Metered]]]) -> tuple[Source, list[Group]]:
    """What to ask about devices, and for each engine process its devices: NVML's where there is NVML, else the host.

    Without a GPU the device of every process is the machine. Its energy is only attributed where there is one process:
    nobody knows how two share its cores.
    """
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    named = [
        [visible[index] if index < len(visible) else str(index) for index in devices or (0,)]
        for devices, _ in processes
    ]
    try:
        nvml = NvmlSource(sorted({name for names in named for name in names}))
    except MeterError as fault:
        log.info("the host is metered and no GPU: %s", fault)
        device = ("cpu",) if len(processes) == 1 else ()
        return HostSource(), [Group(members, device) for _, members in processes]
    groups = []
    for names, (_, members) in zip(named, processes, strict=True):
        labels = tuple(label for name in names for label in nvml.labels[name])
        groups.append(Group(members, labels, len(names)))
    return nvml, groups
