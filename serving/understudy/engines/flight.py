"""The flight recorder: what the driver of an engine process is doing, in a file that survives its crash.

One memory-mapped file of doubles. The driver writes (a memory write each, no system call), the API process reads, at
any time and without asking: while a step hangs, and after the process was killed. Who was at work when it ended is
what decides whether a challenger is quarantined (quarantine.py). It is in memory (``home``): a write to a mapped file
on a disk waits for its file system, and a snapshot's freeze would stop the champion.

A slice is a stretch of a core's work that nothing can interrupt: a whole step, or on the CPU the part of it between
two layers (preempt.py). The longest slice of a challenger is the longest that the champion can have had to wait.

Imports neither vllm nor torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

VERSION = 2.0
MEMORY = Path("/dev/shm")
RUNNING, ENDED = 0.0, 1.0
IDLE, LOADING, STEPPING = 0.0, 1.0, 2.0
ACTIVITIES = {IDLE: "idle", LOADING: "loading", STEPPING: "stepping"}

# The header, one double each. Times are of the monotonic clock, which all processes of a machine share.
_VERSION, _BOOT, _STATE, _CORE, _ACTIVITY, _SINCE, _HEARTBEAT = range(7)
_PID, _PID_STARTED, _NUM_CORES = range(7, 10)
HEADER = 16

# A core, one double each; the histogram of its slices follows.
STEPS, BUSY_S, TOKENS, SLICES, LONGEST_S, OVER, LIMIT, YIELDED, GUARANTEED, MAX_S = range(10)
HISTOGRAM = 12
NUM_BUCKETS = 44
SHORTEST_S = 20e-6  # the upper edge of the first bucket; each next one is larger by the square root of 2
CORE = HISTOGRAM + NUM_BUCKETS


@dataclass(frozen=True, slots=True)
class Activity:
    """What the driver was doing when somebody looked: which core, loading or stepping, and for how long."""

    core: int | None
    kind: str
    for_s: float
    silent_s: float
    """Seconds since the driver last gave a sign of life, which it does at least every second."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Figures of one core. ``longest_ms`` and ``p99_ms`` are of its slices; p99 is rounded up by at most 41%."""

    steps: int = 0
    busy_s: float = 0.0
    tokens: int = 0
    slices: int = 0
    longest_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float | None = None
    """What a slice may take, shadow.max_step_ms; None where nobody waits for it, or before the first."""
    over_limit: int = 0
    """Slices that took longer."""
    max_tokens: int = 0
    """Tokens that its next step may have; it follows from the steps before."""
    yielded: int = 0
    """How often it was interrupted for the champion."""
    guaranteed: int = 0
    """Slices taken from a busy champion under shadow.min_device_share."""


class Flight:
    """The recorder. One process writes; any number read.

    Args:
        path: the file.
        create: make it anew, for the cores of these names; otherwise what is there is opened.
    """

    def __init__(self, path: Path, create: Sequence[str] | None = None) -> None:
        """Open it.

        Raises:
            OSError: it cannot be opened or mapped.
            ValueError: what is there is not a recorder's.
        """
        self.path = path
        self._owned: int | None = None
        names = json.dumps(create).encode() if create is not None else b""
        size = 8 * (HEADER + CORE * len(create or ()))
        if create is None:
            self._map = open_map(path)
        else:
            self._map, self._owned = make(path, size + len(names))
        self._at = memoryview(self._map)[: len(self._map) // 8 * 8].cast("d")
        if create is not None:
            self._map[size:] = names
            self._at[_VERSION], self._at[_BOOT], self._at[_NUM_CORES] = VERSION, boot_number(), len(create)
            self._at[_CORE] = -1.0
        elif self._at[_VERSION] != VERSION:
            raise ValueError(f"{path} is of another version")

    # the driver's side

    def begin(self, pid: int, now_s: float) -> None:
        """The engine process is there."""
        at = self._at
        at[_PID], at[_PID_STARTED], at[_HEARTBEAT], at[_STATE] = pid, started_at(pid), now_s, RUNNING

    def working(self, core: int, activity: float, now_s: float) -> None:
        """From now on this core is at work. The order matters: who reads in between must not blame the wrong one."""
        at = self._at
        at[_ACTIVITY] = IDLE
        at[_CORE], at[_SINCE], at[_HEARTBEAT] = core, now_s, now_s
        at[_ACTIVITY] = activity

    def resting(self, now_s: float) -> None:
        """Nobody is at work."""
        self._at[_ACTIVITY] = IDLE
        self._at[_CORE], self._at[_HEARTBEAT] = -1.0, now_s

    def end(self) -> None:
        """The process ends on purpose, or its end has been dealt with."""
        self._at[_STATE] = ENDED

    def slice(self, core: int, elapsed_s: float, limit_s: float, *, guaranteed: bool = False) -> None:
        """A slice has ended."""
        at, base = self._at, HEADER + CORE * core
        at[base + BUSY_S] += elapsed_s
        at[base + SLICES] += 1
        at[base + HISTOGRAM + bucket_of(elapsed_s)] += 1
        at[base + LONGEST_S] = max(at[base + LONGEST_S], elapsed_s)
        at[base + MAX_S] = limit_s
        if elapsed_s > limit_s:
            at[base + OVER] += 1
        if guaranteed:
            at[base + GUARANTEED] += 1

    def step(self, core: int, tokens: int, next_max_tokens: int) -> None:
        """A step has ended."""
        at, base = self._at, HEADER + CORE * core
        at[base + STEPS] += 1
        at[base + TOKENS] += tokens
        at[base + LIMIT] = next_max_tokens

    def yielded(self, core: int) -> None:
        """A core was interrupted for the champion."""
        self._at[HEADER + CORE * core + YIELDED] += 1

    def forget_slices(self, core: int) -> None:
        """Start the figures of the slices anew: warming up is slow and hurts nobody."""
        base = HEADER + CORE * core
        for index in (SLICES, LONGEST_S, OVER, *range(HISTOGRAM, HISTOGRAM + NUM_BUCKETS)):
            self._at[base + index] = 0.0

    # the reader's side

    @property
    def names(self) -> list[str]:
        """The names of its cores, the champion first where there is one."""
        names: list[str] = json.loads(self._map[8 * (HEADER + CORE * int(self._at[_NUM_CORES])) :])
        return names

    @property
    def pid(self) -> int:
        """The engine process's id; 0 before it has begun."""
        return int(self._at[_PID])

    @property
    def is_alive(self) -> bool:
        """Whether that very process is still there."""
        return self.pid > 0 and started_at(self.pid) == self._at[_PID_STARTED]

    @property
    def is_owned(self) -> bool:
        """Whether who made the recorder is still there, wherever: then it is for nobody else to deal with."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # somebody dealt with it a moment ago
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # a file system without locks
        finally:
            os.close(descriptor)
        return False

    @property
    def ended(self) -> bool:
        """Whether it ended on purpose, or its end has been dealt with."""
        return self._at[_STATE] == ENDED

    @property
    def of_this_boot(self) -> bool:
        """Whether the machine has run since: after a power cut the file may be older than what happened."""
        return self._at[_BOOT] == boot_number()

    def activity(self, now_s: float) -> Activity:
        """What it is doing, or was when it ended."""
        core, kind = int(self._at[_CORE]), self._at[_ACTIVITY]
        at_work = kind != IDLE and core >= 0
        return Activity(
            core if at_work else None,
            ACTIVITIES[kind if at_work else IDLE],
            now_s - self._at[_SINCE] if at_work else 0.0,
            now_s - self._at[_HEARTBEAT],
        )

    def steps(self, core: int) -> Steps:
        """The figures of a core."""
        base = HEADER + CORE * core
        at = self._at[base : base + CORE]
        return Steps(
            steps=int(at[STEPS]),
            busy_s=round(at[BUSY_S], 3),
            tokens=int(at[TOKENS]),
            slices=int(at[SLICES]),
            longest_ms=round(at[LONGEST_S] * 1e3, 3),
            p99_ms=round(min(at[LONGEST_S], quantile(list(at[HISTOGRAM:]), 0.99)) * 1e3, 3),
            max_ms=round(at[MAX_S] * 1e3, 3) if 0.0 < at[MAX_S] < math.inf else None,
            over_limit=int(at[OVER]),
            max_tokens=int(at[LIMIT]),
            yielded=int(at[YIELDED]),
            guaranteed=int(at[GUARANTEED]),
        )

    def busy_s(self, core: int) -> float:
        """Only that, and exactly: asked for at every step."""
        return self._at[HEADER + CORE * core + BUSY_S]

    def describe(self, core: int) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self.steps(core))

    def close(self) -> None:
        """Unmap it, and own it no more. The file stays."""
        self._at.release()
        self._map.close()
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None


def create(folder: Path, instead: Path, name: str, cores: Sequence[str]) -> Flight:
    """A new recorder in ``folder``, or in ``instead`` where that cannot be written: then it ends with the replica.

    Raises:
        OSError: neither can be written.
    """
    try:
        return Flight(folder / name, create=cores)
    except OSError as fault:
        log.error("%s: no flight recorder there, a crash will not be remembered: %s", folder, fault)
        return Flight(instead / name, create=cores)


def home(folder: Path) -> Path:
    """Where the recorders of a record's folder are: in memory, or in that folder where there is no memory to be had.

    They survive every process, and not the machine or the container: that those end is nobody's crash.
    """
    mine = MEMORY / f"understudy-{os.getuid()}"
    try:
        mine.mkdir(mode=0o700, exist_ok=True)
        found = mine.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{mine} is not mine alone")
        place = mine / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as fault:
        log.warning(
            "the flight recorders are in %s, whose file system the engines may have to wait for: %s", folder, fault
        )
        return folder
    return place


def make(path: Path, size: int) -> tuple[mmap.mmap, int]:
    """A new file in the place of what is there, which whoever has it open keeps: a cut file would kill its reader.

    Returns:
        Its map, and a descriptor that holds its lock for as long as this process lives.
    """
    fresh = path.with_name(f"{path.name}.new")
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # a full disk is heard of here and not at a later write
        mapped = mmap.mmap(descriptor, 0)
        with suppress(OSError):  # a file system without locks: somebody may take it for left behind
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.replace(path)
    except BaseException:
        os.close(descriptor)
        raise
    return mapped, descriptor


def open_map(path: Path) -> mmap.mmap:
    """What is there. Raises ValueError where it is too short to be a recorder."""
    with path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size < 8 * HEADER:
            raise ValueError(f"{path} is no flight recorder")
        return mmap.mmap(file.fileno(), 0)


def started_at(pid: int) -> float:
    """When a process was started, in ticks since the machine was; 0.0 where there is none. Tells a reused id apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    state, *rest = stat.rpartition(")")[2].split()
    return 0.0 if state in "ZX" else float(rest[18])


def bucket_of(seconds: float) -> int:
    """The histogram's bucket: the first ends at SHORTEST_S, the last has no end."""
    if seconds <= SHORTEST_S:
        return 0
    return min(NUM_BUCKETS - 1, math.ceil(2.0 * math.log2(seconds / SHORTEST_S) - 1e-9))


def quantile(counts: list[float], fraction: float) -> float:
    """Seconds that ``fraction`` of the counted slices did not exceed: the upper edge of a bucket. 0.0 without any."""
    wanted = fraction * sum(counts)
    seen = 0.0
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return SHORTEST_S * math.sqrt(2.0) ** index
    return 0.0


def boot_number() -> float:
    """A number that changes when the machine starts anew; exact as a double."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return float(int(text.replace("-", "")[:12], 16))
