"""A server with faults that can be switched, and what one says of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.serving.chaos.audience import Audience, seated
from tests.serving.models import make
from tests.serving.process import Running, running, wait_for

INJECTED = Path(__file__).parent / "injected"
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
DISK_BYTES = 128 * 2**20


@dataclass
class Drill:
    """One server, its audience, and the switch."""

    server: Running
    audience: Audience
    switch: Path
    config: Mapping[str, Any]
    pids: Mapping[str, int]
    """Of the engine processes, by the model's name; in the shared placement the champion's has all models."""
    _before: dict[str, Any] = field(default_factory=dict)

    @property
    def placement(self) -> str:
        """shared or dedicated."""
        return str(self.config["placement"])

    @property
    def record(self) -> Path:
        """Its folder."""
        return Path(self.config["record"]["url"])

    @contextlib.contextmanager
    def fault(self, name: str, target: str = "") -> Iterator[None]:
        """On for the time of the block. Answers before, during and after it are all checked."""
        with self.watched():
            during = self.audience.mark()
            self.turn(f"{name} {target}")
            try:
                yield
                self.audience.go_on(during)
            finally:
                self.turn("")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Answers before, during and after the block are all checked, and there are some."""
        self.audience.go_on(self.audience.mark(), 2)
        during = self.audience.mark()
        self.look()
        yield
        self.audience.go_on(during)
        self.audience.go_on(self.audience.mark(), 2)

    def turn(self, text: str) -> None:
        """Whole or not at all: it is read all the time. What ``until_more`` waits for counts from here."""
        self.look()
        aside = self.switch.with_suffix(".new")
        aside.write_text(text, encoding="utf-8")
        aside.rename(self.switch)

    def look(self) -> None:
        """What ``until_more`` waits for counts from here."""
        self._before = {each["name"]: each["counts"] for each in self.server.status()["challengers"]}

    def challenger(self, name: str) -> dict[str, Any]:
        """What status says of it."""
        found = [each for each in self.server.status()["challengers"] if each["name"] == name]
        assert len(found) == 1
        return found[0]

    def ready(self) -> list[str]:
        """The challengers that are up."""
        return [each["name"] for each in self.server.status()["challengers"] if each["ready"]]

    def until_more(self, name: str, state: str, reason: str | None = None, timeout_s: float = 40.0) -> None:
        """Wait until an exchange has ended so since the switch was turned."""
        before = counted(self._before[name], state, reason)
        try:
            wait_for(lambda: counted(self.challenger(name)["counts"], state, reason) > before, timeout_s)
        except AssertionError:
            raise AssertionError(f"no {state} {reason or ''}: {self.challenger(name)}") from None

    def until_gone(self, name: str, timeout_s: float = 40.0) -> str:
        """Wait until the challenger is given up and its exchanges are shed; why, as status has it."""
        wait_for(lambda: not self.challenger(name)["ready"], timeout_s)
        self.until_more(name, "shed", "challenger_not_ready")
        return str(self.challenger(name)["detail"])


def counted(counts: Mapping[str, Any], state: str, reason: str | None) -> int:
    """How many exchanges ended so."""
    return int(counts[state] if reason is None else counts[state].get(reason, 0))


@contextlib.contextmanager
def drill(
    folder: Path,
    challengers: Sequence[tuple[str, str]],
    limits: Mapping[str, Any],
    placement: str = "shared",
    first: str = "",
) -> Iterator[Drill]:
    """A server whose processes have the injected sitecustomize, with an audience.

    Args:
        folder: everything is in it; the record on a small disk of its own where one may be mounted.
        challengers: (name, which of the models of tests/serving/models.py); the champion is the llama.
        limits: of the lane.
        placement: shared or dedicated.
        first: the fault that is on when the server starts.
    """
    models, switch = make(folder / "models"), folder / "fault"
    switch.write_text(first, encoding="utf-8")
    config: dict[str, Any] = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challengers": [{"model": models[model], "name": name, "engine_args": SMALL} for name, model in challengers],
        "placement": placement,
        "shadow": {"limits": dict(limits)},
        "record": {"url": str(folder / "record")},
    }
    with (
        small_disk(folder / "record"),
        running(config, folder, environment=injected(switch)) as server,
        seated(server) as audience,
    ):
        pids = engine_pids(server, ["champ", *(name for name, _ in challengers)])
        yield Drill(server, audience, switch, config, pids)


def injected(switch: Path) -> dict[str, str]:
    """The environment of a server whose processes look into ``switch`` for their fault."""
    python_path = os.pathsep.join([str(INJECTED), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"UNDERSTUDY_CHAOS": str(switch), "PYTHONPATH": python_path}


def engine_pids(server: Running, names: Sequence[str]) -> dict[str, int]:
    """Of the engine processes, which are started in the order of the configuration."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            command = (environ.parent / "cmdline").read_bytes()
            if b"understudy.engines.host" in command and server.mark.encode() in environ.read_bytes():
                found.append(psutil.Process(int(environ.parent.name)))
    found.sort(key=lambda process: process.create_time())
    return dict(zip(names, (process.pid for process in found), strict=False))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own at ``folder``, in memory; False where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write to the file until nothing more goes onto its disk."""
    with path.open("wb", buffering=0) as file:
        for size_bytes in (2**20, 2**10, 1):  # to the last byte
            with contextlib.suppress(OSError):
                while file.write(bytes(size_bytes)) == size_bytes:
                    pass
