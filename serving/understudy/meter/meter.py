"""The meter of one replica: every PERIOD_S it asks the engines and the devices, splits, prices and publishes.

It runs in the replica's event loop (0.1 ms a tick, benchmarks/serving/bench_meter.py) and off the answer's path: busy
seconds from each engine's flight recorder, a reading of the devices that another thread has taken, some arithmetic.
Once a minute an engine on CUDA is asked for its allocator's figures.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
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

CONTESTED = "several engine processes share its counter, and nothing tells them apart"
NO_ENERGY_PRICE = "usd_per_kwh: the energy of some or all models is not measured, and is in no price of theirs"
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

    def num_devices(self, name: str) -> int:
        """That each step of a model takes."""
        groups = (group for group in self._groups if any(engine.name == name for engine in group.engines))
        return next((group.num_devices for group in groups), 1)

    def usd(self, name: str) -> float | None:
        """Its price."""
        return usd(self.share(name), self._prices)

    def shadow_usd_per_hour(self) -> float | None:
        """What all challengers cost, over the last minute; None where they have no price."""
        priced = usd(self._shadow_share(), self._prices)
        return None if priced is None else self.caps.rates()[1]

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
            "shadow": self._shadow(),
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
        """(when, joules) of the group's counters, each once; None unless all its devices count, for it alone."""
        readings = self._readings(group)
        joules = {each.counter: each.energy_joules for each in readings if each.energy_joules is not None}
        counting = sum(each.energy_joules is not None for each in readings)
        if not readings or counting < len(group.devices) or joules.keys() & self._contested():
            return None
        return readings[0].at_s, sum(joules.values())

    def _readings(self, group: Group) -> list[DeviceReading]:
        return [self._sampler.latest[device] for device in group.devices if device in self._sampler.latest]

    def _contested(self) -> set[str]:
        """Counters that several groups have: nobody knows which of them drew how much."""
        users = Counter(name for group in self._groups for name in {each.counter for each in self._readings(group)})
        return {name for name, count in users.items() if count > 1}

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

    def _shadow_share(self) -> Share:
        total = Share()
        for engine in self.engines:
            if engine.role == "challenger":
                total = total.plus(self.share(engine.name))
        return total

    def _shadow(self) -> dict[str, Any]:
        total, over = self._shadow_share(), self.caps.over()
        return asdict(total) | {
            "usd": usd(total, self._prices),
            "device_share": self.caps.rates()[0],
            "usd_per_hour": self.shadow_usd_per_hour(),
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
        said += [f"energy of {name}: {CONTESTED}" for name in sorted(self._contested())]
        if self._prices.usd_per_kwh is not None and any(self._energy(group) is None for group in self._groups):
            said.append(NO_ENERGY_PRICE)
        if any(len(group.engines) > 1 for group in self._groups):
            said.append(ONE_PROCESS)
        return said
