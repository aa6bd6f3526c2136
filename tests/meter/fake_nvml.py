"""NVML from nvml_answers.json: pynvml's functions by name, with pynvml's own errors and constants."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

ANSWERS = Path(__file__).with_name("nvml_answers.json")


class FakeNvml:
    """What nvml.py asks of pynvml. A handle is the device's entry in the file."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(self, *, no_driver: bool = False) -> None:
        answers = json.loads(ANSWERS.read_text())
        self._driver, self._gpus = answers["driver"], answers["gpus"]
        self._no_driver = no_driver
        self.open = 0
        for name in dir(pynvml):
            if name.startswith("nvmlClocksThrottleReason"):
                setattr(self, name, getattr(pynvml, name))

    def nvmlInit(self) -> None:  # noqa: N802
        if self._no_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        questions = {
            "nvmlSystemGetDriverVersion": lambda: self._driver,
            "nvmlDeviceGetCount": lambda: len(self._gpus),
            "nvmlDeviceGetHandleByIndex": self._by_index,
            "nvmlDeviceGetHandleByUUID": self._by_uuid,
            "nvmlDeviceGetIndex": self._gpus.index,
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": self._parent,
            "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: len(gpu["instances"]),
            "nvmlDeviceGetMigDeviceHandleByIndex": lambda gpu, n: self._there(gpu["instances"][n]),
            "nvmlDeviceGetMigMode": lambda gpu: answer(gpu, "mig_mode"),
            "nvmlDeviceGetName": lambda gpu: answer(gpu, "name"),
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(**answer(gpu, "memory")),
            "nvmlDeviceGetTotalEnergyConsumption": lambda gpu: answer(gpu, "energy_mj"),
            "nvmlDeviceGetPowerUsage": lambda gpu: answer(gpu, "power_mw"),
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(**answer(gpu, "utilization")),
            "nvmlDeviceGetClockInfo": lambda gpu, _kind: answer(gpu, "sm_clock_mhz"),
            "nvmlDeviceGetTemperature": lambda gpu, _sensor: answer(gpu, "temperature"),
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: answer(gpu, "throttle"),
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [
                SimpleNamespace(**each) for each in answer(gpu, "processes")
            ],
        }
        if name not in questions:
            raise AttributeError(name)
        return questions[name]

    def _by_index(self, index: int) -> Any:
        return self._there(self._gpus[index] if index < len(self._gpus) else None)

    def _by_uuid(self, uuid: str) -> Any:
        everything = [each for gpu in self._gpus for each in (gpu, *(gpu.get("instances") or ()))]
        return self._there(next((each for each in everything if each and each["uuid"] == uuid), None))

    def _parent(self, instance: Any) -> Any:
        return next(gpu for gpu in self._gpus if instance in (gpu.get("instances") or ()))

    @staticmethod
    def _there(device: Any) -> Any:
        if device is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return device


def answer(device: dict[str, Any], name: str) -> Any:
    """The next answer to a question."""
    found = device[name]
    if isinstance(found, list) and found and not isinstance(found[0], dict) and name != "mig_mode":
        found = found.pop(0) if len(found) > 1 else found[0]
    if isinstance(found, dict) and "error" in found:
        raise pynvml.NVMLError(found["error"])
    return found
