"""What the deployment decides itself."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from tests.builders import in_loop

from understudy import deployment
from understudy.deployment import SWITCH_INTERVAL_S, Replica, seat, sinks
from understudy.ray_metrics import RaySink


@pytest.mark.parametrize(
    ("rank", "num_replicas", "expected"), [(0, 1, 0), (1, 1, 0), (0, 3, 0), (2, 3, 2), (3, 3, 0), (4, 3, 1), (0, 0, 0)]
)
def test_a_successor_takes_the_seat_of_who_it_replaces(rank: int, num_replicas: int, expected: int) -> None:
    assert seat(rank, num_replicas) == expected


@in_loop
async def test_the_threads_of_a_replica_give_the_interpreter_back_to_the_loop_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[float] = []

    class Started:
        @staticmethod
        async def start(*_args: Any, **_kwargs: Any) -> None:
            seen.append(sys.getswitchinterval())

    monkeypatch.setattr(deployment, "own_seat", lambda: 0)
    monkeypatch.setattr(deployment, "Server", Started)
    before = sys.getswitchinterval()
    try:
        _ingress, plain, *_ = Replica.func_or_class.__mro__
        await plain.__init__(SimpleNamespace(), {}, None)
    finally:
        sys.setswitchinterval(before)
    assert seen == [pytest.approx(SWITCH_INTERVAL_S)]


def test_only_a_cluster_gets_rays_metrics() -> None:
    assert sinks(0, "/tmp/door.sock") == []
    assert [type(each) for each in sinks(3, None)] == [RaySink]
