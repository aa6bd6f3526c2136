"""What the tests with servers rely on: whatever a server leaves behind is a failure, and is gone afterwards."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from . import process
from .process import Running, running, wait_for

ENDS = "exec sleep 300"
LEAVES_A_CHILD = "trap 'exit 0' TERM; sleep 300 & wait"


@pytest.fixture(autouse=True)
def answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "answers", lambda _server: True)
    monkeypatch.setattr(process, "LEFTOVERS_S", 0.2)


def served(folder: Path, script: str, *, kill: bool = False) -> Running:
    """A shell in the place of a server, for the time of a test."""
    with running({}, folder, lambda *_: shlex.split(f"sh -c {shlex.quote(script)}")) as server:
        wait_for(lambda: "sleep 300 " in process.marked_processes(server.mark), 10)  # the shell names it too
        if kill:
            server.stop(signal.SIGKILL)
    return server


def test_a_process_that_outlives_its_server_is_a_failure_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: list[str] = []
    end = process.end
    monkeypatch.setattr(process, "end", lambda server: marks.append(server.mark) or end(server))
    with pytest.raises(AssertionError, match=r"left behind: \['sleep 300 '\]"):
        served(tmp_path, LEAVES_A_CHILD)
    wait_for(lambda: not process.marked_pids(marks[0]), 10)


def test_a_server_that_ends_with_its_processes_leaves_nothing(tmp_path: Path) -> None:
    assert process.marked_pids(served(tmp_path, ENDS).mark) == {}


def test_what_a_killed_server_leaves_is_ended_and_no_failure(tmp_path: Path) -> None:
    server = served(tmp_path, LEAVES_A_CHILD, kill=True)
    wait_for(lambda: not process.marked_pids(server.mark), 10)
