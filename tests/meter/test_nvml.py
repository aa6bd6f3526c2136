"""NVML against answers in its own form, and (-m gpu) against the real one."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from understudy.errors import MeterError
from understudy.meter.nvml import WHOLE_GPU, NvmlSource

from .fake_nvml import FakeNvml


def test_every_figure_in_base_units() -> None:
    (reading,) = NvmlSource(["0"], library=FakeNvml(), clock=lambda: 7.0).read()
    assert (reading.device, reading.name, reading.at_s) == ("gpu0", "NVIDIA H100 80GB HBM3", 7.0)
    assert reading.energy_joules == 1000.0
    assert reading.power_watts == 350.0
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (42949672960, 85520809984)
    assert reading.utilization_fraction == 0.87
    assert reading.clock_hz == 1.755e9
    assert reading.temperature_celsius == 61.0
    assert reading.throttle_reasons == ("power_cap",)
    assert reading.process_bytes == {4242: 41943040000}  # NVML does not know the other's
    assert reading.missing == {}
    assert reading.counter == "gpu0"


def test_what_a_card_does_not_count_is_missing_with_nvmls_words_and_the_rest_is_there() -> None:
    (reading,) = NvmlSource(["1"], library=FakeNvml()).read()
    assert reading.energy_joules is None
    assert reading.temperature_celsius is None
    assert reading.missing == {
        "energy_joules": "Not Supported",
        "temperature_celsius": "Insufficient Permissions",
        "process_bytes": "Not Supported",
    }
    assert reading.power_watts == 100.0
    assert reading.throttle_reasons == ()  # idle is no throttling


def test_a_mig_instance_has_its_own_memory_and_says_that_the_counters_are_the_whole_gpus() -> None:
    library = FakeNvml()
    first, second = NvmlSource(["2"], library=library).read()
    assert (first.device, second.device) == ("gpu2/mig0", "gpu2/mig2")
    assert (first.memory_used_bytes, second.memory_used_bytes) == (10737418240, 4294967296)
    assert first.process_bytes == {777: 9663676416}
    assert first.power_watts == 200.0
    assert first.missing["power_watts"] == first.missing["energy_joules"] == WHOLE_GPU
    assert [each.counter for each in (first, second)] == ["gpu2", "gpu2"]
    by_uuid = "MIG-0b0b0b0b-0000-1111-2222-333333333333"
    (named,) = NvmlSource([by_uuid], library=library).read()
    assert (named.device, named.memory_used_bytes) == (f"gpu2/{by_uuid}", 4294967296)
    assert named.counter == "gpu2"


def test_all_devices_where_none_is_named() -> None:
    devices = [reading.device for reading in NvmlSource(library=FakeNvml()).read()]
    assert devices == ["gpu0", "gpu1", "gpu2/mig0", "gpu2/mig2"]


def test_no_driver_and_no_such_device_are_errors_and_nothing_stays_open() -> None:
    with pytest.raises(MeterError, match="Driver Not Loaded"):
        NvmlSource(library=FakeNvml(no_driver=True))
    library = FakeNvml()
    with pytest.raises(MeterError, match=r"devices \['9'\]"):
        NvmlSource(["9"], library=library)
    assert library.open == 0
    source = NvmlSource(library=library)
    source.close()
    assert library.open == 0


def test_pynvml_is_imported_only_when_a_source_is_made() -> None:
    code = "import sys, understudy.meter.nvml, understudy.meter.sampler; print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.gpu
def test_the_real_one() -> None:
    source = NvmlSource()
    try:
        before = source.read()
        time.sleep(0.3)
        after = source.read()
    finally:
        source.close()
    assert before
    for first, second in zip(before, after, strict=True):
        assert first.memory_total_bytes
        if first.energy_joules is None:
            assert first.missing["energy_joules"]
        else:
            assert second.energy_joules is not None
            assert second.energy_joules > first.energy_joules
