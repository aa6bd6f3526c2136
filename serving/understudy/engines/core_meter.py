"""What the meter asks of one engine, champion's or challenger's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.registry import Collector
from vllm.v1.engine.exceptions import EngineDeadError

from understudy.engines.processes import EngineProcess
from understudy.meter.traffic import Traffic

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class CoreMeter:
    """An engine as the meter sees it.

    Attributes:
        name: the model's.
        role: ``champion`` or ``challenger``.
        traffic: what it did.
        registry: where vLLM keeps its metrics.
        process: its engine process, which may hold other models too.
        llm: vLLM's AsyncLLM.
        drafted: whether it generates with the champion's answers as drafts.
    """

    name: str
    role: str
    traffic: Traffic
    registry: Collector
    process: EngineProcess = field(repr=False)
    llm: Any = field(repr=False)
    drafted: bool = False

    @property
    def pid(self) -> int:
        """The process that runs it now."""
        return self.process.pid

    def busy_s(self) -> float:
        """Seconds in which the driver stepped it, from the flight recorder: it answers whatever the engine is doing."""
        return self.process.steps(self.name).busy_s

    async def memory(self) -> Mapping[str, Any] | None:
        """See footprint.py; ``allocator`` is of the whole process. None when the engine does not answer, or is gone."""
        if self.llm.errored:
            return None
        try:
            call = self.llm.engine_core.call_utility_async("understudy_memory")
            return await asyncio.wait_for(call, TIMEOUT_S)
        except (TimeoutError, EngineDeadError):
            return None
