"""The meter of one replica: every PERIOD_S it asks the engines and the devices, splits, prices and publishes.

It runs in the replica's event loop (0.1 ms a tick, benchmarks/serving/bench_meter.py) and off the answer's path: busy
seconds from each engine's flight recorder, a reading of the devices that another thread has taken, some arithmetic.
Once a minute an engine on CUDA is asked for its allocator's figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Protocol

from understudy.config import Prices
from understudy.lane.guard import Guard
from understudy.meter.attribution import Attribution, Share, Split, Window
from understudy.meter.caps import WINDOW_S, Caps
from understudy.meter.cost import Cost, Projection, cost, projected, usd
from understudy.meter.host import resident_bytes
from understudy.meter.reading import DeviceReading
from understudy.meter.sampler import Sampler
from understudy.meter.traffic import Traffic

PERIOD_S = 2.0
WEIGH_EVERY, MEMORY_EVERY = 5, 30  # ticks
METHOD = (
    "busy seconds from the driver split device time and energy; what is drawn while nothing runs is idle and nobody's. "
    "Models that draw different power while stepped are given the same: a model with a share s of the busy time is off "
    "by (1 - s) x |others' power / its own - 1|"
)
ONE_PROCESS = (
    "resident memory and the allocator's figures are the engine process's: models that share it cannot be told apart"
)

DRAFTED = "it answers with the champion's answer as its draft; promoted it would have none, and take more"


class Metered(Protocol):
    """An engine as the meter sees it (engines/core_meter.py)."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def role(self) -> str:
        """``champion`` or ``challenger``."""

    @property
    def traffic(self) -> Traffic:
        """What it did."""

    @property
    def pid(self) -> int:
        """Of its engine process."""

    @property
    def drafted(self) -> bool:
        """Whether it has the champion's answers as drafts: its speed and cost are then not its own."""

    def busy_s(self) -> float:
        """Seconds in which it was stepped."""

    async def memory(self) -> Mapping[str, Any] | None:
        """Bytes by kind; None when it does not answer."""


@dataclass(slots=True)
class Group:
    """Models that share a set of devices.

    Attributes:
        engines: of one engine process.
        devices: as the sampler labels them; empty where nothing measures them.
        num_devices: that each step takes.
    """

    engines: Sequence[Metered]
    devices: tuple[str, ...] = ()
    num_devices: int = 1
    attribution: Attribution = field(default_factory=Attribution)
    busy_s: dict[str, float] = field(default_factory=dict)
    energy: tuple[float, float] | None = None
    """(when, joules) at the end of the last window."""
    at_s: float | None = None


class Meter:
    """Args: the groups, what the devices say, prices, the caps to tell, the guard, and the clock."""

    def __init__(
        self,
        groups: Sequence[Group],
        sampler: Sampler,
        prices: Prices,
        caps: Caps,
        guard: Guard,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.memory: dict[str, dict[str, Any]] = {}
        self.after_tick: Callable[[], None] = lambda: None
        self._groups = groups
        self._sampler = sampler
        self._prices = prices
        self.caps = caps
        self._guard = guard
        self._clock = clock
        self._resident: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Count the memory while nobody is being served yet, then tick until closed."""
        await self._ask_for_memory()
        await self._weigh()
        await asyncio.to_thread(self._sampler.sample)
        self.tick()
        self._sampler.start()
        self._task = asyncio.create_task(self._run(), name="meter")

    async def close(self) -> None:
        """Stop. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await asyncio.to_thread(self._sampler.close)

    def tick(self) -> None:
        """One window of every group."""
        for group in self._groups:
            self._window(group)
        self.after_tick()

    # what people ask

    @property
    def engines(self) -> list[Metered]:
        """All, the champion first where there is one."""
        return [engine for group in self._groups for engine in group.engines]

    def share(self, name: str) -> Share:
        """What a model took so far."""
        return next(
            (group.attribution.models[name] for group in self._groups if name in group.attribution.models), Share()
        )

    def usd(self, name: str) -> float | None:
        """Its price."""
        return usd(self.share(name), self._prices)

    @property
    def has_prices(self) -> bool:
        """Whether there is any money in the figures."""
        return self._prices != Prices()

    @property
    def device_fault(self) -> str | None:
        """Why the devices cannot be read, if they cannot."""
        return self._sampler.fault

    @property
    def devices(self) -> Mapping[str, DeviceReading]:
        """Their newest readings."""
        return self._sampler.latest

    def resident_bytes(self, engine: Metered) -> int | None:
        """Resident memory of its engine process, some seconds old."""
        return self._resident.get(engine.pid)

    def idle(self) -> Share:
        """Device time and energy in which no model was stepped."""
        total = Share()
        for group in self._groups:
            total = total.plus(group.attribution.idle)
        return total

    def cost(self, engine: Metered) -> Cost:
        """The figures of one engine since the start."""
        seconds = next(group.attribution.seconds for group in self._groups if engine in group.engines)
        return cost(self.share(engine.name), engine.traffic, seconds, self._prices)

    def status(self) -> dict[str, Any]:
        """For /shadow/status and the report: figures with what they cannot say in words."""
        champion = next((engine for engine in self.engines if engine.role == "champion"), None)  # none in a replay
        challengers = [engine for engine in self.engines if engine is not champion]
        models = {engine.name: self._model(engine) for engine in self.engines}
        for engine in challengers:
            promoted = None if champion is None else self._promoted(engine, champion)
            models[engine.name]["promoted"] = None if promoted is None else asdict(promoted)
        return {
            "models": models,
            "shadow": self._shadow([self.share(engine.name) for engine in challengers]),
            "idle": asdict(self.idle()),
            "devices": [asdict(reading) for reading in self.devices.values()],
            "method": METHOD,
            "cannot_say": self._cannot_say(),
        }

    # inside

    async def _run(self) -> None:
        for number in count(1):
            await asyncio.sleep(PERIOD_S)
            with self._guard("meter"):
                self.tick()
                if number % WEIGH_EVERY == 0:
                    await self._weigh()
                if number % MEMORY_EVERY == 0:
                    await self._ask_for_memory()

    async def _weigh(self) -> None:
        """In a thread: finding a process's children reads all of /proc, which takes tens of milliseconds."""
        pids = sorted({engine.pid for engine in self.engines})
        sizes = await asyncio.to_thread(lambda: [resident_bytes([pid]) for pid in pids])
        self._resident = dict(zip(pids, sizes, strict=True))

    async def _ask_for_memory(self) -> None:
        """Of engines that have an allocator, whose peaks move (on CUDA), and of those not heard of yet.

        In order: who loaded first owns what is shared. The engine has counted before, so it answers at once.
        """
        for engine in self.engines:
            known = self.memory.get(engine.name)
            if not known or known.get("allocator") is not None:
                self.memory[engine.name] = dict(await engine.memory() or {})

    def _window(self, group: Group) -> None:
        now_s, busy = self._clock(), {}
        for engine in group.engines:
            used = engine.busy_s()
            busy[engine.name] = max(0.0, used - group.busy_s.get(engine.name, used))  # a new process starts at 0
            group.busy_s[engine.name] = used
        energy = self._energy(group)
        if group.at_s is not None and now_s > group.at_s:
            seconds = now_s - group.at_s
            joules = None
            if energy is not None and group.energy is not None and energy[0] > group.energy[0]:
                watts = (energy[1] - group.energy[1]) / (energy[0] - group.energy[0])
                joules = watts * seconds  # the sampler's clock is up to its period behind ours
            self._tell(group.attribution.add(Window(seconds, busy, joules, group.num_devices)), group)
        group.at_s, group.energy = now_s, energy or group.energy

    def _tell(self, found: Split, group: Group) -> None:
        shadow = [found.models[engine.name] for engine in group.engines if engine.role == "challenger"]
        for share in shadow:
            self.caps.took(share.device_s / group.num_devices, usd(share, self._prices))

    def _energy(self, group: Group) -> tuple[float, float] | None:
        """(when, joules) of the group's devices; None unless all of them count."""
        readings = [self._sampler.latest[device] for device in group.devices if device in self._sampler.latest]
        joules = [reading.energy_joules for reading in readings if reading.energy_joules is not None]
        if not readings or len(joules) < len(group.devices):
            return None
        return readings[0].at_s, sum(joules)

    def _promoted(self, challenger: Metered, champion: Metered) -> Projection | None:
        if challenger.drafted:
            return None  # see _cannot_say
        seconds = next(group.attribution.seconds for group in self._groups if challenger in group.engines)
        batches = challenger.traffic.batch_since((0, 0)), champion.traffic.batch_since((0, 0))
        return projected(self.cost(challenger), self.cost(champion), seconds, batches)

    def _model(self, engine: Metered) -> dict[str, Any]:
        traffic = engine.traffic
        return {
            "role": engine.role,
            "cost": asdict(self.cost(engine)),
            "memory": self.memory.get(engine.name, {})
            | {"kv_used_fraction": traffic.kv_used_fraction, "process_resident_bytes": self.resident_bytes(engine)},
            "mean_batch": traffic.batch_since((0, 0)),
        }

    def _shadow(self, shares: Sequence[Share]) -> dict[str, Any]:
        total = Share()
        for share in shares:
            total = total.plus(share)
        over = self.caps.over()
        device_share, usd_per_hour = self.caps.rates()
        priced = usd(total, self._prices)
        return asdict(total) | {
            "usd": priced,
            "device_share": device_share,
            "usd_per_hour": None if priced is None else usd_per_hour,
            "window_s": WINDOW_S,
            "stopped": None if over is None else f"{over[0]}: {over[1]}",
        }

    def _cannot_say(self) -> list[str]:
        """What the figures leave out, in words, each once."""
        unknown = [engine.name for engine in self.engines if not self.memory.get(engine.name)]
        said = [f"{name}: its engine did not say what memory it holds" for name in unknown]
        drafted = [engine.name for engine in self.engines if engine.drafted]
        said += [f"{name}: {DRAFTED}" for name in drafted]
        if self._sampler.fault is not None:
            said.append(f"the devices cannot be read: {self._sampler.fault}")
        for reading in self._sampler.latest.values():
            said += [f"{reading.device}: {figure}: {why}" for figure, why in reading.missing.items()]
        if any(len(group.engines) > 1 for group in self._groups):
            said.append(ONE_PROCESS)
        return said
