"""The API process's end of an engine process: start it, hear its events, know when it is gone, end it.

Imports neither vllm nor torch, so that the engine process loads while the API process still imports them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from understudy.engines.flight import Activity, Flight, Steps
from understudy.errors import EngineStartError

STOP_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class CoreSpec:
    """One core of an engine process. The addresses are where its AsyncLLM binds."""

    name: str
    engine_args: Mapping[str, Any]
    input_address: str
    output_address: str

    @staticmethod
    def at(folder: str, name: str, index: int, engine_args: Mapping[str, Any]) -> CoreSpec:
        """Sockets in ``folder``; the index and not the name, because a socket path has 107 bytes."""
        return CoreSpec(name, engine_args, f"ipc://{folder}/{index}.in", f"ipc://{folder}/{index}.out")


class Deaths:
    """Passes on that a core is gone, also to those who listen only afterwards."""

    def __init__(self) -> None:
        self._listeners: dict[str, Callable[[str], None]] = {}
        self._told: dict[str, str] = {}

    def tell(self, name: str, why: str) -> None:
        """A core is gone. The first reason is the one: that its process then ends as well is no news."""
        if name in self._told:
            return
        self._told[name] = why
        if name in self._listeners:
            self._listeners[name](why)

    def listen(self, name: str, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the reason when the core goes, or now if it has gone."""
        self._listeners[name] = listener
        if name in self._told:
            listener(self._told[name])


@dataclass
class EngineProcess:
    """One running engine process. All methods belong to the event loop that started it."""

    specs: Sequence[CoreSpec]
    on_dead: Callable[[str, str], None]
    """Called with (core name, why) when a core that was ready is gone."""
    flight: Flight
    on_crash: Callable[[EngineProcess, str], None]
    """Called with how the process ended by itself, before anybody hears that its cores are gone."""
    has_champion: bool
    weights: dict[str, dict[str, int]] = field(default_factory=dict, init=False)
    """Bytes of each core's parameters: ``shared_bytes`` with the champion and ``own_bytes``, once it is ready."""
    _process: subprocess.Popen[bytes] = field(init=False)
    _ready: dict[str, asyncio.Future[float]] = field(init=False)
    _closing: bool = field(default=False, init=False)
    _gone: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @staticmethod
    def start(
        specs: Sequence[CoreSpec],
        *,
        has_champion: bool,
        environment: Mapping[str, str],
        on_dead: Callable[[str, str], None],
        flight: Flight,
        on_crash: Callable[[EngineProcess, str], None] = lambda process, why: None,
        max_step_ms: float = 10.0,
        min_device_share: float = 0.0,
    ) -> EngineProcess:
        """Start the process; returns at once.

        Args:
            specs: the cores, the champion first if ``has_champion``.
            environment: added to this process's own.
            on_dead: called in the loop with a core's name and the reason when it is gone.
            flight: the recorder, for these cores.
            on_crash: called in the loop when the process ended by itself; the recorder says who was at work.
            max_step_ms: what a challenger's slice may take beside a champion.
            min_device_share: what challengers get of a busy champion's device.
        """
        self = EngineProcess(specs, on_dead, flight, on_crash, has_champion)
        loop = asyncio.get_running_loop()
        self._ready = {spec.name: loop.create_future() for spec in specs}
        read_fd, write_fd = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "understudy.engines.host"],
                stdin=subprocess.PIPE,
                pass_fds=(write_fd,),
                env={**os.environ, **environment},
            )
        except BaseException:
            os.close(read_fd)
            flight.close()
            raise
        finally:
            os.close(write_fd)
        plan = {
            "cores": [asdict(spec) for spec in specs],
            "has_champion": has_champion,
            "events_fd": write_fd,
            "flight": str(flight.path),
            "max_step_ms": max_step_ms,
            "min_device_share": min_device_share,
        }
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended already: the listener will say how
            self._process.stdin.write(json.dumps(plan).encode() + b"\n")
            self._process.stdin.flush()
        threading.Thread(target=self._listen, args=(read_fd, loop), daemon=True, name="engine-events").start()
        return self

    @property
    def pid(self) -> int:
        """The engine process's id."""
        return self._process.pid

    def index(self, name: str) -> int:
        """The core's place in the flight recorder."""
        return next(index for index, spec in enumerate(self.specs) if spec.name == name)

    def steps(self, name: str) -> Steps:
        """What the core has done so far; needs no answer from the process."""
        return self.flight.steps(self.index(name))

    def others_busy_s(self, name: str) -> float:
        """Seconds that all the other cores of the process have been at work."""
        return sum(self.flight.busy_s(index) for index, spec in enumerate(self.specs) if spec.name != name)

    def activity(self) -> Activity:
        """What its driver is doing now; needs no answer from the process."""
        return self.flight.activity(time.monotonic())

    async def ready(self, name: str) -> float:
        """Seconds the core took to load.

        Raises:
            EngineStartError: it did not load, or the process has ended: who connects to it would wait for ever.
        """
        load_s = await asyncio.shield(self._ready[name])
        if self.is_gone:
            raise EngineStartError("its engine process has ended")
        return load_s

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, however long ago its cores were ready."""
        return self._gone.is_set()

    async def gone(self) -> None:
        """Return when the process has ended and everybody has heard of it."""
        await self._gone.wait()

    def kill(self) -> None:
        """End the process at once, as somebody who knows why: it does not count as a crash."""
        self.flight.end()
        self._process.kill()

    async def close(self) -> None:
        """End the process: first by closing its stdin, then by force. Idempotent."""
        self._closing = True
        await asyncio.to_thread(self._end)
        self.flight.path.unlink(missing_ok=True)  # ended on purpose, or dealt with: it has nothing to say

    def _end(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self.flight.end()
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _listen(self, read_fd: int, loop: asyncio.AbstractEventLoop) -> None:
        with os.fdopen(read_fd) as events:
            for line in events:
                if line.endswith("\n"):  # a process that is killed may leave half a line
                    loop.call_soon_threadsafe(self._heard, json.loads(line))
        code = self._process.wait()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._ended, code)

    def _heard(self, event: dict[str, Any]) -> None:
        name, future = event["core"], self._ready[event["core"]]
        match event["event"]:
            case "ready":
                self.weights[name] = event.get("weights", {})
                future.set_result(event["load_s"])
            case "failed":
                future.set_exception(EngineStartError(event["error"]))
                future.exception()  # heard: nobody may be waiting for a challenger yet
            case "dead":
                self.on_dead(name, event["error"])

    def _ended(self, code: int) -> None:
        why = f"the engine process ended with {describe_exit(code)}"
        if not self._closing and not self.flight.ended:
            self.on_crash(self, why)
        for name, future in self._ready.items():
            if not future.done():
                future.set_exception(EngineStartError(why))
                future.exception()
            elif not future.cancelled() and future.exception() is None and not self._closing:
                self.on_dead(name, why)
        self._gone.set()


def describe_exit(code: int) -> str:
    """``signal SIGKILL`` or ``exit code 1``."""
    known = {number.value: number.name for number in signal.Signals}
    return f"signal {known.get(-code, -code)}" if code < 0 else f"exit code {code}"


def socket_folder() -> str:
    """A private folder for sockets; the owner removes it."""
    return str(Path(tempfile.mkdtemp(prefix="understudy-")))
