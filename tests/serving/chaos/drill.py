"""A server with faults that can be switched, and what one says of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.serving.chaos.audience import Audience, seated
from tests.serving.process import Running, running, wait_for

INJECTED = Path(__file__).parent / "injected"
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
DISK_BYTES = 128 * 2**20
LIMITS = {"deadline_s": 3.0, "breaker_faults": 3, "breaker_cooldown_s": 1.0, "max_pending": 64}


@dataclass
class Drill:
    """One server, its audience, and the switch."""

    server: Running
    audience: Audience
    switch: Path
    record: Path
    _before: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def fault(self, name: str, target: str = "") -> Iterator[None]:
        """On for the time of the block. Answers before, during and after it are all checked."""
        self.audience.go_on(self.audience.mark(), 2)
        during = self.audience.mark()
        self.turn(f"{name} {target}")
        try:
            yield
            self.audience.go_on(during)
        finally:
            self.turn("")
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

    def until_more(self, name: str, state: str, reason: str | None = None, timeout_s: float = 40.0) -> None:
        """Wait until an exchange has ended so since the switch was turned."""
        before = counted(self._before[name], state, reason)
        try:
            wait_for(lambda: counted(self.challenger(name)["counts"], state, reason) > before, timeout_s)
        except AssertionError:
            raise AssertionError(f"no {state} {reason or ''}: {self.challenger(name)}") from None


def counted(counts: Mapping[str, Any], state: str, reason: str | None) -> int:
    """How many exchanges ended so."""
    return int(counts[state] if reason is None else counts[state].get(reason, 0))


@contextlib.contextmanager
def drill(config: Mapping[str, Any], folder: Path) -> Iterator[Drill]:
    """A server whose processes have the injected sitecustomize, with an audience."""
    switch = folder / "fault"
    switch.write_text("", encoding="utf-8")
    python_path = os.pathsep.join([str(INJECTED), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"UNDERSTUDY_CHAOS": str(switch), "PYTHONPATH": python_path}
    with running(config, folder, environment=environment) as server, seated(server) as audience:
        yield Drill(server, audience, switch, Path(config["record"]["url"]))


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
