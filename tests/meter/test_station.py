"""Which devices belong to which engine process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from understudy.config import parse
from understudy.lane.guard import Guard
from understudy.meter import station
from understudy.meter.host import HostSource
from understudy.meter.nvml import NvmlSource
from understudy.meter.station import Station, watched

from .fake_nvml import FakeNvml

ONE: Sequence[Any] = ()


def with_nvml(monkeypatch: pytest.MonkeyPatch, visible: str = "", *, no_driver: bool = False) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(station, "NvmlSource", partial(NvmlSource, library=FakeNvml(no_driver=no_driver)))


def devices(*processes: Sequence[int]) -> list[tuple[str, ...]]:
    return [group.devices for group in watched([(mine, ONE) for mine in processes])[1]]


def test_the_shared_placement_without_devices_is_on_the_first_that_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch)
    assert devices(()) == [("gpu0",)]
    with_nvml(monkeypatch, "1")  # Ray gives a replica its own share
    assert devices(()) == [("gpu1",)]


def test_dedicated_devices_are_indices_into_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch)
    assert devices((0,), (1,)) == [("gpu0",), ("gpu1",)]
    with_nvml(monkeypatch, "1,0")
    assert devices((0,), (1,)) == [("gpu1",), ("gpu0",)]


def test_tensor_parallel_takes_all_its_devices_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch)
    (group,) = watched([((0, 1), ONE)])[1]
    assert (group.devices, group.num_devices) == (("gpu0", "gpu1"), 2)


def test_a_mig_instance_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "MIG-0a0a0a0a-0000-1111-2222-333333333333"
    with_nvml(monkeypatch, name)
    assert devices(()) == [(f"gpu2/{name}",)]


def test_without_nvml_the_machine_is_the_device_and_two_processes_have_no_energy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_nvml(monkeypatch, no_driver=True)
    source, groups = watched([((), ONE)])
    assert isinstance(source, HostSource)
    assert [group.devices for group in groups] == [("cpu",)]
    assert devices((), ()) == [(), ()]


@pytest.mark.parametrize("text", ["full", "redacted", "none"])
def test_traces_have_what_clients_chose_only_where_the_record_has_it(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with_nvml(monkeypatch)
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(station, "exporting", lambda endpoint, *, full: asked.append((endpoint, full)))
    url = "http://localhost:4318/v1/traces"
    Station(parse({"champion": {"model": "m"}, "record": {"text": text}, "traces": {"endpoint": url}}), [], Guard())
    assert asked == [(url, text == "full")]
