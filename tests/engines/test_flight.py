"""The flight recorder: what one process writes another reads, also after the writer was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.engines import flight
from understudy.engines.flight import LOADING, NUM_BUCKETS, SHORTEST_S, STEPPING, Flight, bucket_of, quantile

WRITER = """
import os, signal, sys, time
from pathlib import Path
from understudy.engines.flight import STEPPING, Flight
at = Flight(Path(sys.argv[1]))
at.begin(os.getpid(), time.monotonic())
at.working(1, STEPPING, time.monotonic())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Flight:
    return Flight(tmp_path / "flight", create=["c", "a", "b"])


def test_who_was_stepping_is_known_after_a_kill(recorder: Flight) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, str(recorder.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    found = Flight(recorder.path).activity(0.0)
    assert (found.core, found.kind) == (1, "stepping")
    assert recorder.activity(0.0).core == 1  # the one that was open all the time sees it too
    assert not recorder.ended
    assert recorder.of_this_boot
    assert recorder.pid > 0


def test_what_it_is_doing_and_for_how_long(recorder: Flight) -> None:
    assert recorder.activity(5.0).core is None
    recorder.begin(os.getpid(), 1.0)
    recorder.working(2, LOADING, 3.0)
    seen = recorder.activity(5.0)
    assert (seen.core, seen.kind, seen.for_s, seen.silent_s) == (2, "loading", 2.0, 2.0)
    recorder.working(0, STEPPING, 6.0)
    assert (recorder.activity(6.5).core, recorder.activity(6.5).kind) == (0, "stepping")
    recorder.resting(7.0)
    seen = recorder.activity(9.0)
    assert (seen.core, seen.kind, seen.for_s, seen.silent_s) == (None, "idle", 0.0, 2.0)
    assert not recorder.ended
    recorder.end()
    assert recorder.ended


def test_the_figures_of_a_core_are_its_own(recorder: Flight) -> None:
    for _ in range(98):
        recorder.slice(1, 0.001, 0.01)
    recorder.slice(1, 0.5, 0.01)
    recorder.slice(1, 0.25, 0.01, guaranteed=True)
    recorder.step(1, 7, 64)
    recorder.yielded(1)
    seen = recorder.steps(1)
    assert (seen.steps, seen.tokens, seen.slices, seen.max_tokens) == (1, 7, 100, 64)
    assert (seen.over_limit, seen.guaranteed, seen.yielded) == (2, 1, 1)
    assert (seen.longest_ms, seen.max_ms) == (500.0, 10.0)
    assert 250.0 <= seen.p99_ms <= 250.0 * 2**0.5
    assert seen.busy_s == pytest.approx(0.848)
    for other in (0, 2):
        assert (recorder.steps(other).slices, recorder.steps(other).max_ms) == (0, None)
    recorder.slice(0, 0.001, float("inf"))  # nobody waits for it, and JSON has no infinity
    assert recorder.steps(0).max_ms is None
    recorder.forget_slices(1)
    after = recorder.steps(1)
    assert (after.slices, after.longest_ms, after.p99_ms, after.over_limit) == (0, 0.0, 0.0, 0)
    assert (after.steps, after.busy_s, after.max_tokens) == (1, seen.busy_s, 64)


def test_buckets_hold_what_their_edges_say() -> None:
    edges = [SHORTEST_S * 2 ** (index / 2) for index in range(NUM_BUCKETS)]
    for index in range(NUM_BUCKETS - 1):
        assert bucket_of(edges[index] * 0.999) == index
        assert bucket_of(edges[index] * 1.001) == index + 1
    assert bucket_of(0.0) == 0
    assert bucket_of(1e9) == NUM_BUCKETS - 1
    assert quantile([0.0] * NUM_BUCKETS, 0.99) == 0.0


def test_what_is_no_recorder_is_refused(tmp_path: Path) -> None:
    short, other = tmp_path / "short", tmp_path / "other"
    short.write_bytes(b"\0" * 8)
    other.write_bytes(b"\1" * 1024)
    for path in (short, other):
        with pytest.raises(ValueError, match=r"flight recorder|another version"):
            Flight(path)
    with pytest.raises(FileNotFoundError):
        Flight(tmp_path / "nothing")


def test_after_a_power_cut_it_is_not_believed(recorder: Flight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "boot_number", lambda: 1.0)
    assert not recorder.of_this_boot


def test_making_it_anew_forgets_the_last_flight(recorder: Flight) -> None:
    recorder.working(1, STEPPING, 1.0)
    assert Flight(recorder.path, create=["c", "a", "b"]).activity(2.0).core is None


def test_a_store_that_cannot_be_written_does_not_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = flight.create(tmp_path / "file", tmp_path, "flight-0", ["champ", "a"])
    assert made.path == tmp_path / "flight-0"
    assert made.names == ["champ", "a"]


def test_a_process_id_that_is_used_again_is_another_process(recorder: Flight, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.begin(os.getpid(), 1.0)
    assert recorder.is_alive
    assert recorder.is_owned
    with subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE) as other:
        assert flight.started_at(other.pid) > flight.started_at(os.getpid())
        recorder.begin(other.pid, 1.0)
        assert other.stdin is not None
        other.stdin.close()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert not recorder.is_alive  # ended, though not yet waited for
    own = flight.started_at(os.getpid())
    monkeypatch.setattr(flight, "started_at", lambda _: own + 1)
    assert not recorder.is_alive
    assert recorder.is_owned  # by its lock, which says nothing about ids
