"""The API process's end of an engine process, over a child that has no model and does as it is told."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.builders import in_loop

from understudy.engines import processes
from understudy.engines.flight import Flight
from understudy.engines.processes import CoreSpec, Deaths, EngineProcess, describe_exit, socket_folder
from understudy.errors import EngineStartError

# Stands where understudy.engines.host stands; what it does after reading the plan is in its environment.
HOST = """
import json, os, signal, sys, time

plan = json.loads(sys.stdin.readline())
events = os.fdopen(plan["events_fd"], "w")

def send(event, core, **more):
    events.write(json.dumps({"event": event, "core": core, **more}) + "\\n")
    events.flush()

exec(os.environ["SCRIPT"])
"""
ALL_READY = "[send('ready', core['name'], load_s=1.5) for core in plan['cores']]\n"
UNTIL_STDIN_ENDS = "sys.stdin.read()\n"


@dataclass
class Watched:
    """An engine process and what was said of its cores' deaths."""

    process: EngineProcess = field(init=False)
    dead: list[tuple[str, str]] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    def on_dead(self, name: str, why: str) -> None:
        self.dead.append((name, why))
        self._told.set()

    def on_crash(self, process: EngineProcess, why: str) -> None:
        assert process is self.process
        assert self.dead == []  # who decides about quarantine is told first
        self.crashes.append(why)

    async def deaths(self, count: int) -> list[tuple[str, str]]:
        while len(self.dead) < count:
            self._told.clear()
            await self._told.wait()
        return self.dead


@asynccontextmanager
async def started(folder: Path, script: str, *names: str) -> AsyncIterator[Watched]:
    """A process with the cores ``names`` that runs ``script``."""
    package = folder / "understudy" / "engines"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "host.py").write_text(HOST)
    specs = [CoreSpec.at("/tmp/s", name, index, {"seed": index}) for index, name in enumerate(names)]
    watched = Watched()
    watched.process = EngineProcess.start(
        specs,
        has_champion=True,
        environment={"PYTHONPATH": str(folder), "SCRIPT": script},
        on_dead=watched.on_dead,
        on_crash=watched.on_crash,
        flight=Flight(folder / "flight", create=names),
    )
    try:
        yield watched
    finally:
        await watched.process.close()


@in_loop
async def test_the_plan_and_the_environment_reach_the_process(tmp_path: Path) -> None:
    script = "send('failed', 'a', error=json.dumps({'plan': plan, 'home': os.environ['HOME']}))"
    async with started(tmp_path, script, "a", "b") as watched:
        with pytest.raises(EngineStartError) as raised:
            await watched.process.ready("a")
    said = json.loads(str(raised.value))
    assert said["home"] == os.environ["HOME"]  # added to this process's own, not instead of it
    assert said["plan"]["has_champion"] is True
    assert said["plan"]["flight"] == str(tmp_path / "flight")
    assert said["plan"]["cores"][1] == {
        "name": "b",
        "engine_args": {"seed": 1},
        "input_address": "ipc:///tmp/s/1.in",
        "output_address": "ipc:///tmp/s/1.out",
    }


@in_loop
async def test_ready_gives_each_cores_load_time_to_whoever_asks_however_often(tmp_path: Path) -> None:
    script = "send('ready', 'a', load_s=1.5); send('ready', 'b', load_s=2.5)\n" + UNTIL_STDIN_ENDS
    async with started(tmp_path, script, "a", "b") as watched:
        assert await watched.process.ready("b") == 2.5
        assert [await watched.process.ready("a") for _ in range(2)] == [1.5, 1.5]


@in_loop
async def test_what_the_others_of_a_process_took_is_not_ones_own(tmp_path: Path) -> None:
    async with started(tmp_path, UNTIL_STDIN_ENDS, "a", "b", "c") as watched:
        for core, elapsed_s in enumerate((1.0, 20.0, 300.0)):
            watched.process.flight.slice(core, elapsed_s, 1.0)
        assert [watched.process.others_busy_s(name) for name in "abc"] == [320.0, 301.0, 21.0]


@in_loop
async def test_a_core_that_fails_leaves_the_others(tmp_path: Path) -> None:
    script = "send('ready', 'a', load_s=1.0); send('failed', 'b', error='MemoryError: too large')\n"
    async with started(tmp_path, script + UNTIL_STDIN_ENDS, "a", "b") as watched:
        assert await watched.process.ready("a") == 1.0
        with pytest.raises(EngineStartError, match="MemoryError: too large"):
            await watched.process.ready("b")
        assert watched.dead == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sys.exit(3)", "the engine process ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the engine process ended with signal SIGKILL"),
        ("raise RuntimeError", "the engine process ended with exit code 1"),
    ],
)
@in_loop
async def test_a_process_that_ends_before_it_is_ready(tmp_path: Path, script: str, why: str) -> None:
    async with started(tmp_path, script, "a", "b") as watched:
        for name in "ab":
            with pytest.raises(EngineStartError, match=why):
                await watched.process.ready(name)
        assert watched.dead == []  # it never lived


@in_loop
async def test_a_process_that_is_killed_takes_every_core_with_it_that_was_ready(tmp_path: Path) -> None:
    script = "send('ready', 'a', load_s=1); send('failed', 'b', error='x'); send('ready', 'c', load_s=1)\n"
    async with started(tmp_path, script + UNTIL_STDIN_ENDS, "a", "b", "c") as watched:
        await watched.process.ready("c")
        os.kill(watched.process.pid, signal.SIGKILL)
        why = "the engine process ended with signal SIGKILL"
        assert await watched.deaths(2) == [("a", why), ("c", why)]
        assert watched.crashes == [why]
        await watched.process.gone()
        with pytest.raises(EngineStartError, match="has ended"):  # who connects to it now would wait for ever
            await watched.process.ready("c")


@in_loop
async def test_a_process_that_is_ended_by_who_knows_why_is_no_crash(tmp_path: Path) -> None:
    async with started(tmp_path, ALL_READY + UNTIL_STDIN_ENDS, "a") as watched:
        await watched.process.ready("a")
        watched.process.kill()
        assert await watched.deaths(1) == [("a", "the engine process ended with signal SIGKILL")]
        assert watched.crashes == []


@in_loop
async def test_a_core_that_dies_alone_is_told_of_alone(tmp_path: Path) -> None:
    script = ALL_READY + "send('dead', 'b', error='RuntimeError: it broke')\n" + UNTIL_STDIN_ENDS
    async with started(tmp_path, script, "a", "b") as watched:
        assert await watched.deaths(1) == [("b", "RuntimeError: it broke")]
        assert await watched.process.ready("a") == 1.5


@in_loop
async def test_close_ends_the_process_and_nobody_is_called_dead(tmp_path: Path) -> None:
    async with started(tmp_path, ALL_READY + UNTIL_STDIN_ENDS, "a") as watched:
        await watched.process.ready("a")
        await watched.process.close()
        await watched.process.close()  # idempotent
        with pytest.raises(ProcessLookupError):
            os.kill(watched.process.pid, 0)
        await asyncio.to_thread(events_thread_ends)
        assert watched.dead == []
        assert watched.crashes == []


def events_thread_ends() -> None:
    """Wait for the last event to be sent to the loop."""
    for thread in threading.enumerate():
        if thread.name == "engine-events":
            thread.join()


@in_loop
async def test_close_kills_a_process_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_GRACE_S", 0.05)
    async with started(tmp_path, ALL_READY + "while True: time.sleep(60)", "a") as watched:
        await watched.process.ready("a")
        await watched.process.close()
        with pytest.raises(ProcessLookupError):
            os.kill(watched.process.pid, 0)
        assert watched.process.flight.ended  # no crash that the next start is to find


@in_loop
async def test_who_stops_waiting_does_not_stop_the_others(tmp_path: Path) -> None:
    script = "time.sleep(0.0) if sys.stdin.readline() else None\n" + ALL_READY
    async with started(tmp_path, script, "a") as watched:
        impatient = asyncio.create_task(watched.process.ready("a"))
        patient = asyncio.create_task(watched.process.ready("a"))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        stdin = watched.process._process.stdin
        assert stdin is not None
        stdin.write(b"go on\n")
        stdin.flush()
        assert await patient == 1.5


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (137, "exit code 137"),
        (-9, "signal SIGKILL"),
        (-11, "signal SIGSEGV"),
    ],
)
def test_how_a_process_ended_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


def test_socket_paths_do_not_grow_with_the_name() -> None:
    """A socket path has 107 bytes."""
    spec = CoreSpec.at(socket_folder_name(), "a name of a model " * 20, 12, {})
    assert len(spec.output_address.removeprefix("ipc://")) < 107
    assert CoreSpec.at("/f", "x", 0, {}).input_address != CoreSpec.at("/f", "y", 1, {}).input_address


def socket_folder_name() -> str:
    folder = Path(socket_folder())
    assert re.fullmatch(r"[0-7]*700", f"{folder.stat().st_mode:o}")  # private
    folder.rmdir()
    return str(folder)


def test_the_first_reason_of_a_death_is_the_one_that_is_told() -> None:
    """A core faults, then its process ends for want of a core: the fault is what an operator must read."""
    heard: list[str] = []
    deaths = Deaths()
    deaths.listen("rival", heard.append)
    deaths.tell("rival", "RuntimeError: broken")
    deaths.tell("rival", "the engine process ended with exit code 1")
    deaths.listen("rival", heard.append)
    assert heard == ["RuntimeError: broken", "RuntimeError: broken"]
