"""NVIDIA devices through NVML (package nvidia-ml-py, module pynvml), imported when a Source is made.

Every counter may be missing: on consumer cards, in virtual machines, on MIG instances. What NVML refuses becomes a
None with NVML's own words. A MIG instance has memory of its own, but power, energy, clocks and temperature are the
whole GPU's: its reading has the parent's, and says so (``missing``, ``counter_of``).

Source: NVIDIA, NVML API reference, "Device Queries" and "Multi Instance GPU Management".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from understudy.errors import MeterError
from understudy.meter.reading import DeviceReading

WHOLE_GPU = "of the whole GPU: NVML does not meter MIG instances apart"
PARENTS = ("energy_joules", "power_watts", "clock_hz", "temperature_celsius", "utilization_fraction")


class NvmlSource:
    """The devices named, or all of them.

    Args:
        devices: as in CUDA_VISIBLE_DEVICES: indices, GPU UUIDs or MIG UUIDs; empty means all, and of a GPU in MIG mode
            all its instances.
        library: pynvml, or what answers like it.

    Raises:
        MeterError: NVML cannot be loaded, or a device is not there.
    """

    def __init__(
        self, devices: Sequence[str] = (), *, library: Any = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._nvml = library if library is not None else _pynvml()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as fault:
            raise MeterError(f"NVML cannot be used: {fault}") from fault
        self._throttle = _throttle_names(self._nvml)
        self.driver_version = str(self._nvml.nvmlSystemGetDriverVersion())
        self.labels: dict[str, tuple[str, ...]] = {}
        """Of each device that was named: as its readings are labelled."""
        try:
            self._handles = self._find(devices)
        except self._nvml.NVMLError as fault:
            self._nvml.nvmlShutdown()
            raise MeterError(f"devices {list(devices)}: {fault}") from fault

    def read(self) -> list[DeviceReading]:
        """One reading for each device; takes 1 to 10 ms a device."""
        return [self._read(label, handle, parent) for label, handle, parent in self._handles]

    def close(self) -> None:
        """Unload NVML."""
        self._nvml.nvmlShutdown()

    # inside

    def _find(self, devices: Sequence[str]) -> list[tuple[str, Any, Any]]:
        """(label, handle, the GPU that has the counters) for each device."""
        nvml = self._nvml
        if not devices:
            devices = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        found = []
        for device in devices:
            mine = self._one(device)
            self.labels[device] = tuple(label for label, _, _ in mine)
            found += mine
        return found

    def _one(self, device: str) -> list[tuple[str, Any, Any]]:
        nvml = self._nvml
        if device.isdecimal():
            handle = nvml.nvmlDeviceGetHandleByIndex(int(device))
        else:
            handle = nvml.nvmlDeviceGetHandleByUUID(device)
        if device.startswith("MIG-"):
            parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            return [(f"gpu{nvml.nvmlDeviceGetIndex(parent)}/{device}", handle, parent)]
        label = f"gpu{nvml.nvmlDeviceGetIndex(handle)}"
        instances = self._instances(handle)
        found = [(f"{label}/mig{number}", instance, handle) for number, instance in instances]
        return found or [(label, handle, handle)]

    def _instances(self, handle: Any) -> list[tuple[int, Any]]:
        """The MIG instances of a GPU; none where it is not in MIG mode or knows no MIG."""
        nvml = self._nvml
        try:
            current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        except nvml.NVMLError:
            return []
        found = []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current else 0):
            try:
                found.append((number, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
            except nvml.NVMLError:
                continue  # a slot that is not in use
        return found

    def _read(self, label: str, handle: Any, parent: Any) -> DeviceReading:
        nvml, missing = self._nvml, dict.fromkeys(PARENTS, WHOLE_GPU) if handle is not parent else {}

        def ask(figure: str, question: Callable[[], Any]) -> Any:
            try:
                return question()
            except nvml.NVMLError as fault:
                missing[figure] = str(fault)
                return None

        memory = ask("memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        throttle = ask("throttle_reasons", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(parent))
        processes = ask("process_bytes", lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        sm_clock = nvml.NVML_CLOCK_SM
        return DeviceReading(
            device=label,
            name=str(ask("name", lambda: nvml.nvmlDeviceGetName(handle))),
            energy_joules=ask("energy_joules", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(parent) / 1e3),
            power_watts=ask("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(parent) / 1e3),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            utilization_fraction=ask(
                "utilization_fraction", lambda: nvml.nvmlDeviceGetUtilizationRates(parent).gpu / 100
            ),
            clock_hz=ask("clock_hz", lambda: nvml.nvmlDeviceGetClockInfo(parent, sm_clock) * 1e6),
            temperature_celsius=ask(
                "temperature_celsius",
                lambda: float(nvml.nvmlDeviceGetTemperature(parent, nvml.NVML_TEMPERATURE_GPU)),
            ),
            throttle_reasons=None
            if throttle is None
            else tuple(name for bit, name in self._throttle.items() if throttle & bit),
            process_bytes={each.pid: int(each.usedGpuMemory) for each in processes or () if each.usedGpuMemory},
            missing=missing,
            counter_of=None if handle is parent else label.partition("/")[0],
            at_s=self._clock(),
        )


def _pynvml() -> Any:
    import pynvml

    return pynvml


def _throttle_names(nvml: Any) -> Mapping[int, str]:
    """Bit -> word. Idle and the user's own clock settings are no throttling."""
    prefix = "nvmlClocksThrottleReason"
    words = {
        "SwPowerCap": "power_cap",
        "HwSlowdown": "hardware_slowdown",
        "SwThermalSlowdown": "thermal",
        "HwThermalSlowdown": "hardware_thermal",
        "HwPowerBrakeSlowdown": "power_brake",
    }
    return {getattr(nvml, prefix + name): word for name, word in words.items() if hasattr(nvml, prefix + name)}
