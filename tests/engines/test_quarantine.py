"""Who is put into quarantine after a crash, and that it survives one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from understudy.engines import flight as flight_module
from understudy.engines import quarantine as quarantine_module
from understudy.engines.flight import LOADING, STEPPING, Flight
from understudy.engines.quarantine import CRASH_WINDOW_S, FORGOTTEN_S, LOCK, MARKER, Quarantine

NAMES = ["champ", "a", "b"]
KILLED = "the engine process ended with signal SIGKILL"


class Wall:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def quarantine(tmp_path: Path, wall: Wall) -> Quarantine:
    return Quarantine(tmp_path, wall)


def flight_at(folder: Path, core: int | None, activity: float = STEPPING) -> Flight:
    flight = Flight(folder / "flight-0", create=NAMES)
    flight.begin(os.getpid(), time.monotonic())
    if core is not None:
        flight.working(core, activity, time.monotonic())
    return flight


@pytest.mark.parametrize(("activity", "word"), [(STEPPING, "stepping"), (LOADING, "loading")])
def test_the_challenger_that_was_at_work_is_quarantined_and_nobody_else(
    quarantine: Quarantine, tmp_path: Path, activity: float, word: str
) -> None:
    flight = flight_at(tmp_path, 2, activity)
    assert quarantine.crashed(flight, KILLED) == ["b"]
    again = Quarantine(tmp_path)  # as the next start sees it
    found = again.why("b")
    assert found is not None
    assert found.why == f"{KILLED} while b was {word}"
    assert found.at_unix_s == 1_000_000.0
    assert "understudy shadow resume" in str(found)
    assert again.why("a") is None
    assert flight.ended  # dealt with: the next start does not count it again


@pytest.mark.parametrize("core", [0, None])
def test_a_crash_in_the_champions_own_step_quarantines_no_innocents(
    quarantine: Quarantine, tmp_path: Path, core: int | None
) -> None:
    assert quarantine.crashed(flight_at(tmp_path, core), KILLED) == []
    assert Quarantine(tmp_path).names() == []


def test_the_second_one_soon_after_quarantines_all(tmp_path: Path, wall: Wall) -> None:
    Quarantine(tmp_path, wall).crashed(flight_at(tmp_path, 0), KILLED)
    wall.now_s += CRASH_WINDOW_S - 1
    assert Quarantine(tmp_path, wall).crashed(flight_at(tmp_path, 0), KILLED) == ["a", "b"]
    why = Quarantine(tmp_path).why("a")
    assert why is not None
    assert why.why.startswith("two crashes within 10 minutes, no challenger at work")


def test_a_crash_that_was_a_challengers_does_not_count_against_the_others(tmp_path: Path, wall: Wall) -> None:
    Quarantine(tmp_path, wall).crashed(flight_at(tmp_path, 2), KILLED)
    assert Quarantine(tmp_path, wall).crashed(flight_at(tmp_path, 0), KILLED) == []
    assert Quarantine(tmp_path).names() == ["b"]


def test_the_second_one_much_later_does_not(tmp_path: Path, wall: Wall) -> None:
    Quarantine(tmp_path, wall).crashed(flight_at(tmp_path, 0), KILLED)
    wall.now_s += CRASH_WINDOW_S + 1
    assert Quarantine(tmp_path, wall).crashed(flight_at(tmp_path, None), KILLED) == []


def test_a_process_with_one_core_has_nobody_to_blame(quarantine: Quarantine, tmp_path: Path) -> None:
    for _ in range(2):
        flight = Flight(tmp_path / "flight-1", create=["rival"])
        flight.working(0, STEPPING, time.monotonic())
        assert quarantine.crashed(flight, KILLED) == []
        assert flight.ended
    assert quarantine.crashed(flight_at(tmp_path, 0), KILLED) == []


def test_lifting_one_or_all(quarantine: Quarantine, tmp_path: Path) -> None:
    quarantine.put_in("a", "x")
    quarantine.put_in("b", "y")
    assert quarantine.lift("a") == ["a"]
    assert Quarantine(tmp_path).names() == ["b"]
    assert quarantine.lift("nobody") == []
    assert quarantine.lift(None) == ["b"]
    assert Quarantine(tmp_path).names() == []


def test_the_first_reason_stays(quarantine: Quarantine) -> None:
    quarantine.put_in("a", "it hung")
    quarantine.put_in("a", "signal SIGKILL")
    found = quarantine.why("a")
    assert found is not None
    assert found.why == "it hung"


def test_a_marker_that_cannot_be_read_or_written_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MARKER).write_text("{half")
    broken = Quarantine(tmp_path)
    assert broken.names() == []
    monkeypatch.setattr(flight_module, "MEMORY", tmp_path / "none")
    blocked = Quarantine(tmp_path / MARKER / "no folder")
    blocked.put_in("a", "x")
    assert blocked.names() == ["a"]  # until this process ends; the log says so
    nowhere = Quarantine(None)
    nowhere.put_in("a", "x")
    assert nowhere.names() == ["a"]


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is there for /dev/shm."""
    place = tmp_path / "memory"
    place.mkdir()
    monkeypatch.setattr(flight_module, "MEMORY", place)
    return place


def in_memory(memory: Path) -> list[Path]:
    return list(memory.rglob(MARKER))


def test_who_crashed_while_the_disk_was_full_is_known_to_the_successor(memory: Path, tmp_path: Path) -> None:
    """Else it loads the challenger again, and the crash repeats for ever."""
    (tmp_path / "file").touch()
    record = tmp_path / "file" / "record"  # a marker there cannot be written, by root neither
    Quarantine(record).crashed(flight_at(tmp_path, 2), KILLED)
    successor = Quarantine.open(record)
    found = successor.why("b")
    assert found is not None
    assert found.why == f"{KILLED} while b was stepping"
    assert Quarantine.open(tmp_path / "file" / "other").names() == []  # another record is another server's
    assert successor.lift("b") == ["b"]
    assert Quarantine.open(record).names() == []


def test_crashes_that_were_nobodys_count_although_the_disk_is_full(memory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record = tmp_path / "file" / "record"
    assert Quarantine(record).crashed(flight_at(tmp_path, 0), KILLED) == []
    assert Quarantine(record).crashed(flight_at(tmp_path, 0), KILLED) == ["a", "b"]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether the record's disk is full. What is there can be read and removed."""
    state, put = {"full": False}, quarantine_module.put
    monkeypatch.setattr(
        quarantine_module, "put", lambda path, text: not (state["full"] and path.parent == tmp_path) and put(path, text)
    )
    return state


MARKED = '{"v": 1, "quarantined": {"d": {"why": "it hung", "at_unix_s": 1.0}}, "crashes": []}'


def test_the_markers_on_disk_and_in_memory_are_one(memory: Path, tmp_path: Path, disk: dict[str, bool]) -> None:
    here, there = Quarantine(tmp_path), Quarantine(tmp_path)
    here.put_in("a", "it hung")
    assert in_memory(memory) == []  # no need
    disk["full"] = True
    here.put_in("b", "it hung too")
    there.refresh()
    assert there.names() == ["a", "b"]
    (tmp_path / MARKER).write_text(MARKED)  # by somebody who does not see this memory
    assert sorted(Quarantine(tmp_path).names()) == ["a", "b", "d"]
    disk["full"] = False
    there.put_in("c", "it hung as well")
    assert in_memory(memory) == []  # the disk has it all again
    assert sorted(Quarantine(tmp_path).names()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("full", [False, True])
def test_lifting_clears_both(memory: Path, tmp_path: Path, disk: dict[str, bool], full: bool) -> None:
    here, there = Quarantine(tmp_path), Quarantine(tmp_path)
    here.put_in("a", "it hung")
    disk["full"] = True
    here.put_in("b", "it hung too")
    disk["full"] = full
    assert there.lift("a") == ["a"]
    here.refresh()
    assert here.names() == Quarantine.open(tmp_path).names() == ["b"]
    assert there.lift(None) == ["b"]
    here.refresh()
    assert here.names() == Quarantine.open(tmp_path).names() == []


def test_the_marker_is_json_for_people(quarantine: Quarantine, tmp_path: Path) -> None:
    quarantine.put_in("a", "it hung")
    body = json.loads((tmp_path / MARKER).read_text())
    assert body == {"v": 1, "quarantined": {"a": {"why": "it hung", "at_unix_s": 1_000_000.0}}, "crashes": []}


# What an earlier run left, whose API process is gone too

LAST_RUN = """
import os, signal, subprocess, sys, time
from pathlib import Path
from understudy.engines.flight import STEPPING, Flight

flight = Flight(Path(sys.argv[1]), create=["champ", "a", "b"])
engine = int(sys.argv[2]) or os.getpid()
flight.begin(engine, time.monotonic())
flight.working(1, STEPPING, time.monotonic())
if sys.argv[3] == "end":
    flight.end()
os.kill(os.getpid(), signal.SIGKILL)
"""


def last_run(path: Path, engine: int = 0, how: str = "crash") -> None:
    subprocess.run([sys.executable, "-c", LAST_RUN, str(path), str(engine), how], check=False)


def test_a_run_that_was_killed_as_a_whole_is_nobodys_fault_the_first_time(tmp_path: Path) -> None:
    """No challenger can end its replica, and who stops a container does: the one at work is not to blame."""
    last_run(tmp_path / "flight-0")
    assert Quarantine.open(tmp_path).names() == []
    assert not (tmp_path / "flight-0").exists()
    last_run(tmp_path / "flight-1")
    assert Quarantine.open(tmp_path).names() == ["a", "b"]  # twice within ten minutes: then the champion alone
    Quarantine(tmp_path).lift(None)
    assert Quarantine.open(tmp_path).names() == []  # not a third time


def test_what_one_replica_writes_another_sees(tmp_path: Path) -> None:
    """A replica that is replaced and its successor overlap, and resume is answered by any of several."""
    here, there = Quarantine(tmp_path), Quarantine(tmp_path)
    here.put_in("a", "it hung")
    there.refresh()
    assert there.why("a") is not None
    there.put_in("b", "it hung too")
    assert here.lift(None) == ["a", "b"]
    there.refresh()
    assert there.why("b") is None


def test_why_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked in the loop that answers, every two seconds; the record may be on a server that is gone."""
    quarantine = Quarantine(tmp_path)
    quarantine.put_in("a", "it hung")
    monkeypatch.setattr(Path, "stat", lambda *_, **__: pytest.fail("asked the disk"))
    assert quarantine.why("a") is not None


def test_what_cannot_be_read_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / MARKER).write_text("{")
    quarantine = Quarantine(tmp_path)
    quarantine.refresh()
    quarantine.refresh()
    assert len(caplog.records) == 1


PUTS_IN = """
import sys
from pathlib import Path
from understudy.engines.quarantine import Quarantine

quarantine = Quarantine(Path(sys.argv[1]))
sys.stdin.readline()
for number in range(20):
    quarantine.put_in(f"{sys.argv[2]}{number}", "it hung")
"""


def test_two_replicas_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", PUTS_IN, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    assert set(Quarantine(tmp_path).names()) == {f"{name}{number}" for name in "ab" for number in range(20)}
    assert {path.name for path in tmp_path.iterdir()} == {MARKER, LOCK}


def test_the_recorder_of_another_machine_is_left_alone_until_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_run(tmp_path / "flight-0")
    monkeypatch.setattr(flight_module, "boot_number", lambda: 7.0)
    assert Quarantine.open(tmp_path).names() == []
    assert (tmp_path / "flight-0").exists()
    os.utime(tmp_path / "flight-0", (0, time.time() - FORGOTTEN_S - 1))
    assert Quarantine.open(tmp_path).names() == []
    assert not (tmp_path / "flight-0").exists()


def test_one_that_ended_on_purpose_is_none(tmp_path: Path) -> None:
    last_run(tmp_path / "flight-0", how="end")
    assert Quarantine.open(tmp_path).names() == []


def test_an_engine_process_that_was_left_behind_and_hangs_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as orphan:
        last_run(tmp_path / "flight-0", orphan.pid)
        assert Quarantine.open(tmp_path).names() == ["a"]
        assert orphan.wait(10) == -signal.SIGKILL


def test_a_recorder_whose_owner_lives_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one in another container, whose process ids mean nothing here."""
    flight = flight_at(tmp_path, 1)  # this process is its owner
    monkeypatch.setattr(flight_module, "started_at", lambda _pid: 0.0)
    assert Quarantine.open(tmp_path).names() == []
    assert flight.path.exists()
    flight.close()
    Quarantine.open(tmp_path)
    assert not flight.path.exists()


def test_the_recorders_are_in_memory_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to a mapped file on a disk waits for its file system, and with it the champion."""
    monkeypatch.setattr(flight_module, "MEMORY", tmp_path / "memory")
    record, other = tmp_path / "record", tmp_path / "other"
    assert flight_module.home(record) == record  # there is none
    (tmp_path / "memory").mkdir()
    place = flight_module.home(record)
    assert place.parent.parent == tmp_path / "memory"
    assert place == flight_module.home(tmp_path / "x" / ".." / "record") != flight_module.home(other)
    last_run(place / "flight-0", how="left")
    Quarantine.open(record)
    assert not (place / "flight-0").exists()
    place.parent.chmod(0o777)  # somebody else may have made it
    assert flight_module.home(record) == record


def test_the_usual_place_is_a_file_system_in_memory(tmp_path: Path) -> None:
    if not flight_module.MEMORY.is_dir():
        pytest.skip("this machine has no /dev/shm")
    assert flight_module.home(tmp_path).is_relative_to(flight_module.MEMORY)


def test_what_is_no_recorder_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "flight-0").write_text("something else")
    assert Quarantine.open(tmp_path).names() == []


def test_a_recorder_that_goes_while_it_is_looked_at_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica that ends, or another successor, has dealt with it."""
    last_run(tmp_path / "flight-0")
    opened = flight_module.Flight.__init__

    def and_it_goes(self: Flight, path: Path, *args: Any) -> None:
        opened(self, path, *args)
        path.unlink()

    monkeypatch.setattr(flight_module.Flight, "__init__", and_it_goes)
    assert Quarantine.open(tmp_path).names() == []


def test_without_locks_a_recorder_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(flight_module.fcntl, "flock", refused)
    flight_at(tmp_path, 1).end()
    assert Quarantine.open(tmp_path).names() == []
    assert not (tmp_path / "flight-0").exists()
