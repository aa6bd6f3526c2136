"""The fault drill, in both placements: what breaks, how exchanges must end meanwhile, and that it goes on afterwards.

Shared: what breaks is in the champion's own engine process, or in its API's. Dedicated: in the challenger's. One server
for each placement, with users in front of it who must not notice. In the order of this file: faults from which a
challenger recovers first, then those that end one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from tests.serving.chaos.drill import Drill, drill, fill
from tests.serving.process import wait_for

HANG_S = 20.0  # well above what a hang that is switched off again lasts
LIMITS = {
    "deadline_s": 3.0,
    "max_concurrency": 4,
    "breaker_faults": 3,
    "breaker_cooldown_s": 1.0,
    "max_pending": 64,
    "hang_s": HANG_S,
}
CHALLENGERS = [("rival", "qwen2"), ("stranger", "other"), ("scorer", "qwen2")]
WITH_PROCESSES_OF_THEIR_OWN = [*CHALLENGERS, ("stopped", "qwen2"), ("killed", "qwen2")]
ROOM_BYTES = 2**31  # for what is not the step's

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.chaos, pytest.mark.timeout(600)]
dedicated_only = pytest.mark.parametrize("here", ["dedicated"], indirect=True)


@pytest.fixture(scope="module", params=["shared", "dedicated"])
def here(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    challengers = CHALLENGERS if request.param == "shared" else WITH_PROCESSES_OF_THEIR_OWN
    with drill(tmp_path_factory.mktemp("chaos"), challengers, LIMITS, request.param) as here:
        yield here


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: of the switch (injected/sitecustomize.py).
        hits: the challenger; "" for what belongs to none.
        ends: (state, reason) that exchanges of this challenger must get while it is on.
        shows: what status must say while it is on.
        after: what status must say when it is over.
        crowds: the placement in which it is in the way of the other challengers too, which may expire meanwhile.
    """

    name: str
    hits: str = ""
    ends: tuple[tuple[str, str | None], ...] = ()
    shows: Callable[[Mapping[str, Any]], Any] = lambda _status: True
    after: Callable[[Mapping[str, Any]], Any] = lambda _status: True
    crowds: str = ""

    def __str__(self) -> str:
        return self.name


def swallowed(operation: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda status: status["lane"]["swallowed"].get(operation)


def recording_is_off(words: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda status: not status["record"]["recording"] and words in status["record"]["detail"]


def is_recording(status: Mapping[str, Any]) -> bool:
    return bool(status["record"]["recording"])


def has_recorded_all(status: Mapping[str, Any]) -> bool:
    return is_recording(status) and status["record"]["lost"] == 0


RECOVERS = [
    Fault("tokenizer_raises", "stranger", (("failed", "Injected"), ("shed", "breaker_open"))),
    Fault("step_out_of_memory", "rival", (("failed", "out_of_memory"),)),
    Fault("step_slow", "rival", (("expired", None),), crowds="shared"),  # 100 times slower, and one driver for all
    Fault("model_nan", "rival", (("failed", "not_finite"), ("shed", "breaker_open"))),
    Fault("answer_nan", "rival", (("failed", "not_finite"), ("shed", "breaker_open"))),
    Fault("comparator_raises", shows=swallowed("compare agreement")),
    Fault("metrics_raise", shows=swallowed("metrics")),
    Fault("disk_full", shows=recording_is_off("No space left"), after=has_recorded_all),
    # Injected, because a real one does not get there: the kernel refuses to remount what is open for writing (EBUSY).
    Fault("disk_read_only", shows=recording_is_off("Read-only"), after=has_recorded_all),
    Fault("record_raises", shows=lambda status: status["record"]["lost"], after=is_recording),  # the last: it loses
]


@pytest.mark.parametrize("fault", RECOVERS, ids=str)
def test_it_recovers(here: Drill, fault: Fault) -> None:
    with here.fault(fault.name, fault.hits):
        for state, reason in fault.ends:
            here.until_more(fault.hits, state, reason)
        wait_for(lambda: fault.shows(here.server.status()), 40)
        for name in here.ready():
            if name != fault.hits and fault.crowds != here.placement:
                here.until_more(name, "compared")
    for name in here.ready():
        here.until_more(name, "compared")
    wait_for(lambda: fault.after(here.server.status()), 40)
    assert len(here.ready()) == len(here.config["challengers"])


def test_a_scrape_fails_and_nothing_else(here: Drill) -> None:
    def scrape() -> int:
        return httpx.get(f"{here.server.url}/metrics", timeout=30).status_code

    assert scrape() == 200
    with here.fault("metrics_raise"):
        wait_for(lambda: scrape() == 500)
    assert scrape() == 200


def test_a_disk_that_is_full(here: Drill) -> None:
    """The real thing, with everything that writes there, and not only the log."""
    if not here.record.is_mount():
        pytest.skip("no right to mount a small disk here: skipped")
    filler, lost = here.record / "filler", here.server.status()["record"]["lost"]
    with here.watched():
        fill(filler)
        try:
            wait_for(lambda: recording_is_off("No space left")(here.server.status()))
            here.until_more("rival", "compared")
        finally:
            filler.unlink()
    wait_for(lambda: is_recording(here.server.status()))
    assert here.server.status()["record"]["lost"] == lost


@dedicated_only
def test_a_step_that_hangs_for_a_while(here: Drill) -> None:
    with here.fault("step_hangs", "rival"):
        here.until_more("rival", "expired")
        here.until_more("rival", "shed", "breaker_open")
        assert "deadline" in here.challenger("rival")["last_fault"]
        here.until_more("scorer", "compared")
    here.until_more("rival", "compared")


@dedicated_only
def test_engine_processes_that_are_stopped_for_a_while_and_for_good(here: Drill) -> None:
    """What is in the shared placement a hang of the champion's own process: test_quarantine.py."""
    with here.watched():
        os.kill(here.pids["rival"], signal.SIGSTOP)
        os.kill(here.pids["stopped"], signal.SIGSTOP)
        try:
            here.until_more("rival", "expired")
            here.until_more("rival", "shed", "breaker_open")
            here.until_more("stranger", "compared")
        finally:
            os.kill(here.pids["rival"], signal.SIGCONT)
        here.look()
        here.until_more("rival", "compared")
        assert "it hung" in here.until_gone("stopped")


@dataclass(frozen=True)
class End:
    """A fault that ends a challenger: what status then says of it."""

    name: str
    hits: str
    why: str

    def __str__(self) -> str:
        return self.name


ENDS = [End("score_raises", "scorer", "a score that raises"), End("step_raises", "rival", "a step that raises")]


@pytest.mark.parametrize("end", ENDS, ids=str)
def test_it_ends_the_challenger(here: Drill, end: End) -> None:
    with here.fault(end.name, end.hits):
        assert end.why in here.until_gone(end.hits)
        here.until_more(end.hits, "failed", "engine_dead")
        here.until_more("stranger", "compared")
    assert not here.challenger(end.hits)["ready"]  # it is not started again by itself


@dedicated_only
def test_an_engine_process_that_may_have_no_more_memory(here: Drill) -> None:
    """The kernel refuses what a step asks for (RLIMIT_AS). Native code may not survive that; the champion does."""
    process = psutil.Process(here.pids["stranger"])
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_AS)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (process.memory_info().vms + ROOM_BYTES, unlimited[1]))
    try:
        with here.fault("step_allocates", "stranger"):
            detail = here.until_gone("stranger")
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ends with its only core
            resource.prlimit(process.pid, resource.RLIMIT_AS, unlimited)
    assert "memory" in detail or "signal SIG" in detail
    here.until_more("killed", "compared")


@dedicated_only
def test_an_engine_process_that_is_killed(here: Drill) -> None:
    with here.watched():
        os.kill(here.pids["killed"], signal.SIGKILL)
        assert "SIGKILL" in here.until_gone("killed", 30)
