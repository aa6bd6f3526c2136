"""One thread that asks the devices, and the newest readings with an energy counter for each.

A device that has no energy counter but tells its power gets one here: power over time, by trapezoids.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from understudy.meter.reading import DeviceReading, Source

PERIOD_S = 0.5
INTEGRATED = "integrated from power readings: the device has no energy counter"


class Sampler:
    """``sample`` takes one round of readings; ``start`` does so in a thread. Reading ``latest`` costs nothing."""

    def __init__(self, source: Source, period_s: float = PERIOD_S) -> None:
        self.latest: Mapping[str, DeviceReading] = {}
        self.fault: str | None = None
        self._source = source
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Sample until closed."""
        self._thread = threading.Thread(target=self._run, name="meter-sampler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and give the library back. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._source.close()

    def sample(self) -> Sequence[DeviceReading]:
        """One round."""
        readings = [self._with_energy(reading) for reading in self._source.read()]
        self.latest = {reading.device: reading for reading in readings}
        return readings

    def _with_energy(self, now: DeviceReading) -> DeviceReading:
        if now.energy_joules is not None or now.power_watts is None:
            return now
        before = self.latest.get(now.device)
        energy = 0.0
        if before is not None and before.energy_joules is not None and before.power_watts is not None:
            seconds = now.at_s - before.at_s
            energy = before.energy_joules + (before.power_watts + now.power_watts) / 2 * seconds
        return replace(now, energy_joules=energy, missing={**now.missing, "energy_joules": INTEGRATED})

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.sample()
                self.fault = None
            except Exception as fault:  # noqa: BLE001  # shown in status: a device may fall off its bus while we serve
                self.fault = f"{type(fault).__name__}: {fault}"
            self._stop.wait(self._period_s)
