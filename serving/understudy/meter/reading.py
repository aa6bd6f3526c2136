"""What a device says of itself at one moment, whoever asked it (nvml.py, host.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device. A figure that is None was not to be had, and ``missing`` says why, by its name.

    Attributes:
        device: ``gpu0``, ``gpu0/mig1`` or ``cpu``.
        name: the product.
        at_s: monotonic seconds.
        energy_joules: a counter; only differences mean something.
        power_watts: averaged by the device over its own window, of up to a second.
        memory_used_bytes: of the device, whoever uses it.
        utilization_fraction: of the time in which any kernel ran (not of what the device could do).
        clock_hz: of the streaming multiprocessors.
        throttle_reasons: why the clock is lower than it could be; empty where it is not.
        process_bytes: device memory by process id; one process may hold several models.
        counter_of: the device whose energy counter this is, where it is another's (a MIG instance has its GPU's).
    """

    device: str
    name: str
    at_s: float
    energy_joules: float | None = None
    power_watts: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_fraction: float | None = None
    clock_hz: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    process_bytes: Mapping[int, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    counter_of: str | None = None

    @property
    def counter(self) -> str:
        """The device that counts its energy: readings with the same one have the same joules."""
        return self.counter_of or self.device


class Source(Protocol):
    """Where readings come from. ``read`` may block for milliseconds: the sampler calls it in a thread of its own."""

    def read(self) -> Sequence[DeviceReading]:
        """One reading for each device."""

    def close(self) -> None:
        """Give the library back."""
