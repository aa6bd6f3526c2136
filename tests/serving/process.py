"""A server as a user has it: ``understudy serve`` in a process of its own, ended by a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

MARK = "UNDERSTUDY_TEST_MARK"
START_TIMEOUT_S = 300.0
LEFTOVERS_S = 30.0


@dataclass
class Running:
    """A server that has answered once."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    mark: str
    log: Path

    def status(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/shadow/status", timeout=60).raise_for_status().json()

    def exchanges(self, any_id: str) -> list[dict[str, Any]]:
        """What the record has under an id, once nothing is pending."""
        self.settled()
        return httpx.get(f"{self.url}/shadow/exchanges/{any_id}", timeout=60).raise_for_status().json()["exchanges"]

    def settled(self) -> dict[str, Any]:
        """The status once nothing is pending."""
        return wait_for(lambda: settled_status(self))

    def post(self, route: str, **body: Any) -> dict[str, Any]:
        return httpx.post(f"{self.url}/shadow/{route}", json=body, timeout=60).raise_for_status().json()

    def stop(self, number: int) -> int:
        """Send the signal and wait for the end. Returns the exit code.

        SIGINT goes to the whole process group, as a terminal's Ctrl-C does.
        """
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.process.wait(90)


def settled_status(server: Running) -> dict[str, Any] | None:
    status = server.status()
    return status if status["counts"]["pending"] == 0 else None


def wait_for(condition: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    """Poll until the condition gives something true; what it gives."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s: {condition}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def marked_processes(mark: str) -> list[str]:
    """Every living process that was started, by whomever, under this mark."""
    return list(marked_pids(mark).values())


def marked_pids(mark: str) -> dict[int, str]:
    """The same by their ids."""
    found = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in environ.read_bytes():
                command = (environ.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(environ.parent.name)] = command
    return found


def end(server: Running) -> list[str]:
    """End it, and kill what is left of it. What that was, unless the test had killed the server itself."""
    ends_by_itself = server.process.poll() is None or server.process.returncode == 0
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(90)
    with contextlib.suppress(ProcessLookupError):
        server.process.kill()
    if ends_by_itself:
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not marked_pids(server.mark), LEFTOVERS_S)
    left = marked_pids(server.mark)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(left.values()) if ends_by_itself else []


def spawn(
    command: list[str], log: Path, mark: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    settings = {**os.environ, MARK: mark, "VLLM_LOGGING_LEVEL": "WARNING", **(environment or {})}
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=settings, start_new_session=True)


@contextlib.contextmanager
def running(
    config: Mapping[str, Any],
    folder: Path,
    command: Callable[[Path, int], list[str]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A server for the time of the block. Whatever is left of it afterwards is killed, and is a failure."""
    port, mark = free_port(), uuid.uuid4().hex
    path, log = folder / "config.yaml", folder / "server.log"
    path.write_text(yaml.safe_dump(dict(config)))
    process = spawn((command or serve_command)(path, port), log, mark, environment)
    server = Running(f"http://127.0.0.1:{port}", port, process, mark, log)
    try:
        wait_for(lambda: process.poll() is not None or answers(server), START_TIMEOUT_S)
        assert process.poll() is None, log.read_text()[-4000:]
        yield server
    except BaseException:
        sys.stderr.write(log.read_text()[-6000:])
        end(server)
        raise
    left = end(server)
    assert not left, f"left behind: {left}"


def serve_command(config: Path, port: int) -> list[str]:
    return [str(Path(sys.executable).parent / "understudy"), "serve", str(config), "--port", str(port)]


def answers(server: Running) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{server.url}/v1/models", timeout=5).status_code == 200
    return False
