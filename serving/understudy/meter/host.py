"""A machine without a GPU: memory from psutil, energy from RAPL where it may be read.

RAPL (Linux powercap) counts microjoules of each CPU package and wraps around; since 2020 kernels let only root read it.
It is the whole package: whatever else runs on the machine is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from understudy.meter.reading import DeviceReading

POWERCAP = Path("/sys/class/powercap")
NO_RAPL = "no RAPL package is there (a virtual machine, or not an x86 processor)"


class HostSource:
    """The CPU and its memory as one device. ``powercap`` is the kernel's folder."""

    def __init__(self, powercap: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._packages = sorted(powercap.glob("intel-rapl:[0-9]"))
        self._last_uj: dict[Path, int] = {}
        self._joules = 0.0

    def read(self) -> list[DeviceReading]:
        """One reading, of the device ``cpu``."""
        memory = psutil.virtual_memory()
        energy, why = self._energy()
        return [
            DeviceReading(
                device="cpu",
                name=f"{psutil.cpu_count()} cores",
                at_s=self._clock(),
                energy_joules=energy,
                memory_used_bytes=memory.total - memory.available,
                memory_total_bytes=memory.total,
                utilization_fraction=psutil.cpu_percent(interval=None) / 100,
                missing={} if why is None else {"energy_joules": why},
            )
        ]

    def close(self) -> None:
        """Nothing is open."""

    def _energy(self) -> tuple[float | None, str | None]:
        """Joules since the first reading over all packages, or why there are none."""
        if not self._packages:
            return None, NO_RAPL
        try:
            for package in self._packages:
                now = int((package / "energy_uj").read_text())
                before = self._last_uj.get(package, now)
                wrapped = int((package / "max_energy_range_uj").read_text()) if now < before else 0
                self._joules += (now + wrapped - before) / 1e6
                self._last_uj[package] = now
        except OSError as fault:
            return None, f"RAPL cannot be read: {fault.strerror} (only root may, by default)"
        return self._joules, None


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of processes and their children. Pages that several share count once for each."""
    total = 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            total += sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
        except psutil.NoSuchProcess:
            continue  # it has just ended
    return total
