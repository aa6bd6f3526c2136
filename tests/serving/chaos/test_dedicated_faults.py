"""The fault drill in the dedicated placement: what breaks here is in the challenger's own engine process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.serving.chaos.drill import LIMITS, SMALL, Drill, drill
from tests.serving.models import make
from tests.serving.process import wait_for

ROOM_BYTES = 2**31  # for what is not the step's

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    folder = tmp_path_factory.mktemp("chaos")
    models = make(folder / "models")
    config: dict[str, Any] = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challengers": [
            {"model": models["qwen2"], "name": "rival", "engine_args": SMALL},
            {"model": models["qwen2"], "name": "killed", "engine_args": SMALL},
        ],
        "placement": "dedicated",
        "shadow": {"limits": LIMITS},
        "record": {"url": str(folder / "record")},
    }
    with drill(config, folder) as here:
        yield here


def engine_pid(here: Drill, index: int) -> int:
    """Of the index-th model; the processes are started in the order of the configuration."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if here.server.mark.encode() in environ.read_bytes():
                line = (environ.parent / "cmdline").read_bytes()
                if b"understudy.engines.host" in line:
                    found.append(int(environ.parent.name))
        except OSError:
            continue
    return sorted(found, key=lambda pid: psutil.Process(pid).create_time())[index]


def test_a_step_that_hangs(here: Drill) -> None:
    with here.fault("step_hangs", "rival"):
        here.until_more("rival", "expired")
        here.until_more("rival", "shed", "breaker_open")
        assert "deadline" in here.challenger("rival")["last_fault"]
    here.until_more("rival", "compared")


def test_an_engine_process_that_is_stopped_and_goes_on(here: Drill) -> None:
    pid = engine_pid(here, 1)
    since = here.audience.mark()
    here.look()
    os.kill(pid, signal.SIGSTOP)
    try:
        here.until_more("rival", "expired")
        here.until_more("rival", "shed", "breaker_open")
        here.audience.go_on(since)
    finally:
        os.kill(pid, signal.SIGCONT)
        here.look()
    here.until_more("rival", "compared")
    here.audience.go_on(here.audience.mark(), 2)


def test_a_challenger_that_is_a_hundred_times_slower(here: Drill) -> None:
    with here.fault("step_slow", "rival"):
        here.until_more("rival", "expired")
    here.until_more("rival", "compared")


def test_a_step_without_memory(here: Drill) -> None:
    with here.fault("step_out_of_memory", "rival"):
        here.until_more("rival", "failed", "out_of_memory")
    here.until_more("rival", "compared")


def test_an_engine_process_that_may_have_no_more_memory(here: Drill) -> None:
    """The kernel refuses what a step asks for (RLIMIT_AS). Native code may not survive that; the champion does."""
    pid = engine_pid(here, 1)
    unlimited = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + ROOM_BYTES, unlimited[1]))
    try:
        with here.fault("step_allocates", "rival"):
            wait_for(lambda: not here.challenger("rival")["ready"])
            here.until_more("rival", "shed", "challenger_not_ready")
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ends with its only core
            resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
    detail = here.challenger("rival")["detail"]
    assert "memory" in detail or "signal SIG" in detail
    here.until_more("killed", "compared")


def test_an_engine_process_that_is_killed(here: Drill) -> None:
    since = here.audience.mark()
    here.look()
    os.kill(engine_pid(here, -1), signal.SIGKILL)
    wait_for(lambda: not here.challenger("killed")["ready"], 30)
    here.until_more("killed", "shed", "challenger_not_ready")
    assert "SIGKILL" in here.challenger("killed")["detail"]
    here.audience.go_on(since, 20)
