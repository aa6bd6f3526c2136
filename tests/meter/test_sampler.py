from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.builders import Clock

from understudy.meter.host import NO_RAPL, HostSource, resident_bytes
from understudy.meter.nvml import NvmlSource
from understudy.meter.reading import DeviceReading
from understudy.meter.sampler import INTEGRATED, Sampler

from .fake_nvml import FakeNvml


def test_a_device_without_an_energy_counter_gets_one_from_its_power() -> None:
    clock = Clock()
    sampler = Sampler(NvmlSource(["1"], library=FakeNvml(), clock=clock))
    sampler.sample()
    clock.advance(10)
    sampler.sample()
    reading = sampler.latest["gpu1"]
    assert reading.energy_joules == pytest.approx((100 + 120) / 2 * 10)
    assert reading.missing["energy_joules"] == INTEGRATED


def test_a_device_with_a_counter_keeps_its_own() -> None:
    sampler = Sampler(NvmlSource(["0"], library=FakeNvml()))
    sampler.sample()
    sampler.sample()
    assert sampler.latest["gpu0"].energy_joules == 1350.0
    assert "energy_joules" not in sampler.latest["gpu0"].missing


class Flaky:
    """A device that falls off its bus at the second reading."""

    def __init__(self) -> None:
        self.reads, self.closed, self.failed = 0, False, threading.Event()

    def read(self) -> list[DeviceReading]:
        self.reads += 1
        if self.reads > 1:
            self.failed.set()
            raise OSError("GPU is lost")
        return [DeviceReading("gpu0", "x", 0.0)]

    def close(self) -> None:
        self.closed = True


def test_one_thread_samples_and_a_fault_is_shown_and_not_the_end() -> None:
    source = Flaky()
    sampler = Sampler(source, period_s=0.001)
    sampler.start()
    assert source.failed.wait(10)
    while sampler.fault is None:
        threading.Event().wait(0.001)
    sampler.close()
    assert sampler.fault == "OSError: GPU is lost"
    assert sampler.latest["gpu0"].name == "x"
    assert source.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "meter-sampler"]
    sampler.close()


def package(folder: Path, energy_uj: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    package(tmp_path / "intel-rapl:0", 999_000_000)
    package(tmp_path / "intel-rapl:1", 5_000_000)
    package(tmp_path / "intel-rapl:0:0", 1)  # a part of package 0: counted there
    source = HostSource(tmp_path)
    assert source.read()[0].energy_joules == 0.0
    package(tmp_path / "intel-rapl:0", 2_000_000)
    package(tmp_path / "intel-rapl:1", 7_000_000)
    assert source.read()[0].energy_joules == pytest.approx(3.0 + 2.0)


def test_without_rapl_the_reading_says_so(tmp_path: Path) -> None:
    (reading,) = HostSource(tmp_path).read()
    assert reading.energy_joules is None
    assert reading.missing["energy_joules"] == NO_RAPL
    assert reading.memory_used_bytes
    (tmp_path / "intel-rapl:0").mkdir()  # there, but not to be read
    (unreadable,) = HostSource(tmp_path).read()
    assert "cannot be read" in unreadable.missing["energy_joules"]


def test_resident_memory_of_a_process_that_ended_is_none_of_ours() -> None:
    import os

    mine = resident_bytes([os.getpid()])
    assert mine > 1_000_000
    assert resident_bytes([2**22 + 1]) == 0
