"""Quarantine: challengers that are not started again because they took the engine process with them.

A marker file, ``quarantine.json``, in the folder of the record, one for all replicas that record there: who replaces a
replica may have another rank, and a route is answered by any of them. Who changes it holds ``quarantine.lock``. In it
are the challengers in quarantine, each with why and since when, and late crashes for which nobody was to blame:

    {"v": 1, "quarantined": {"w8a8": {"why": "...", "at_unix_s": 1795510800.0}},
     "crashes": [{"at_unix_s": 1795510800.0, "why": "..."}]}

Where the disk does not take the marker, for it is full, there is one beside the flight recorders, in memory, until the
disk takes one again: a crash that is forgotten repeats. What either says counts.

``understudy shadow resume`` takes a challenger out; it comes back when a replica starts the next time.

Who is to blame: the challenger that was at work when the process ended. If nobody was, or the champion, nobody is, the
first time; nor is anybody where the replica ended with it, because a challenger cannot end that and who stops a
container does: a second crash within CRASH_WINDOW_S puts every challenger of the process in, because a fault of one can
show in another's work (on a GPU it often does), and a champion that serves alone is better than one that does not.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from understudy.engines import flight as recorders
from understudy.engines.flight import Activity, Flight

log = logging.getLogger(__name__)

MARKER = "quarantine.json"
LOCK = "quarantine.lock"
CRASH_WINDOW_S = 600.0
FORGOTTEN_S = 7 * 86_400.0
"""A recorder of another machine, or of this one before it started anew, that nobody has written to for so long."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Why a challenger is in quarantine, and since when."""

    why: str
    at_unix_s: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.at_unix_s))
        return f"in quarantine since {since}: {self.why}; `understudy shadow resume` lifts it"


@dataclass(frozen=True, slots=True)
class Crash:
    """An engine process that ended by itself."""

    at_unix_s: float
    why: str


class Quarantine:
    """The marker file, as one replica sees it; what others write is seen too.

    Args:
        folder: the record's; None for one that ends with this object.
        wall: seconds of the wall clock.
    """

    def __init__(self, folder: Path | None, wall: Callable[[], float] = time.time) -> None:
        places = [] if folder is None else [folder, recorders.home(folder)]
        self._paths = [place / MARKER for place in dict.fromkeys(places)]  # on the disk, then in memory if there is any
        self._wall = wall
        self._quarantined: dict[str, Quarantined] = {}
        self._crashes: list[Crash] = []
        self._seen: list[tuple[int, ...] | None] = []
        self._lock = threading.RLock()
        self._read()

    @staticmethod
    def open(folder: Path | None) -> Quarantine:
        """The marker, with what replicas that are gone left to deal with; the folder is made where there is none."""
        quarantine = Quarantine(folder)
        if folder is not None:
            with suppress(OSError):  # a store that cannot be written; whoever writes to it says so
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for marker in quarantine._paths:
                for path in sorted(marker.parent.glob("flight-*")):
                    quarantine.take_up(path)
        return quarantine

    def why(self, name: str) -> Quarantined | None:
        """Why a challenger is in quarantine, as last read; None where it is not. Waits for no disk."""
        return self._quarantined.get(name)

    def refresh(self) -> None:
        """See what others wrote; may wait for the store, so call it in a thread."""
        with self._lock:
            self._read()

    def names(self) -> list[str]:
        """Who is in quarantine."""
        return list(self._quarantined)

    def put_in(self, name: str, why: str) -> None:
        """Quarantine a challenger. The first reason stays: what follows from it says less."""
        with self._changing():
            self._add(name, why)

    def lift(self, name: str | None) -> list[str]:
        """Take one challenger out, or all. The crashes are forgotten too. Returns who was in."""
        with self._changing():
            lifted = [each for each in self._quarantined if name in (None, each)]
            for each in lifted:
                del self._quarantined[each]
            if lifted:
                self._crashes.clear()
        return lifted

    def crashed(self, flight: Flight, why: str, *, alone: bool = True) -> list[str]:
        """An engine process with the champion in it ended by itself.

        Args:
            flight: its recorder; marked as dealt with.
            why: how it ended.
            alone: and its replica did not end with it.

        Returns:
            The challengers that are in quarantine because of it.
        """
        at_work = flight.activity(time.monotonic())
        flight.end()
        names = flight.names
        challengers = names[1:]
        if not challengers:  # the champion alone, or a challenger in a process of its own
            return []
        with self._changing():
            return self._blame(at_work if alone else None, names, why)

    def take_up(self, path: Path) -> None:
        """Deal with the recorder of a replica whose API process is gone, if it did not do so itself; remove it.

        One of another boot tells of no process here; where machines share the folder it can be in use on another one.
        """
        try:
            flight = Flight(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as fault:
            log.warning("the flight recorder of the last run cannot be read: %s", fault)
            return
        try:
            if not flight.of_this_boot:
                with suppress(OSError):
                    if self._wall() - path.stat().st_mtime > FORGOTTEN_S:
                        path.unlink()
                return
            if flight.is_owned:
                return
            with suppress(OSError):
                path.unlink()
            if flight.ended:
                return
            stuck = flight.is_alive
            if stuck:  # left behind by its API process, and so stuck that it does not see it
                with suppress(ProcessLookupError):
                    os.kill(flight.pid, signal.SIGKILL)
            if flight.pid:
                self.crashed(flight, "the engine process ended together with its replica", alone=stuck)
        finally:
            flight.close()

    def _blame(self, at_work: Activity | None, names: list[str], why: str) -> list[str]:
        now_s, challengers = self._wall(), names[1:]
        self._crashes = [crash for crash in self._crashes if 0.0 <= now_s - crash.at_unix_s <= CRASH_WINDOW_S]
        if at_work is not None and at_work.core is not None and 0 < at_work.core < len(names):
            blamed = [names[at_work.core]]
            why = f"{why} while {blamed[0]} was {at_work.kind}"
        else:
            if at_work is not None and at_work.core == 0:
                why = f"{why} while {names[0]} was {at_work.kind}"
            blamed = challengers if self._crashes else []
            self._crashes.append(Crash(now_s, why))
            if blamed:
                why = f"two crashes within {CRASH_WINDOW_S / 60:.0f} minutes, no challenger at work; the last: {why}"
        for name in blamed:
            self._add(name, why)
        if not blamed:
            log.error("%s; nobody is quarantined the first time", why)
        return blamed

    def _add(self, name: str, why: str) -> None:
        self._quarantined.setdefault(name, Quarantined(why, self._wall()))
        log.error("challenger %s is quarantined: %s", name, why)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Read, change, write, and nobody else meanwhile: a replica that is replaced and its successor overlap."""
        with self._lock, self._locked():
            self._read()
            before = dict(self._quarantined), list(self._crashes)
            yield
            if before != (self._quarantined, self._crashes):
                self._write(lifted=bool(before[0].keys() - self._quarantined.keys()))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Without the lock where the store has none: then the last one to write wins, as a whole."""
        if not self._paths:
            yield
            return
        lock: int | None = None
        marker = self._paths[0]
        try:
            marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(marker.with_name(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as fault:
            log.warning("%s is changed without a lock: %s", marker, fault)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _read(self) -> None:
        there = [identity(path) for path in self._paths]
        if there == self._seen:
            return
        quarantined: dict[str, Quarantined] = {}
        crashes: list[Crash] = []
        for number, path in enumerate(self._paths):
            try:
                raw = json.loads(path.read_text(encoding="utf-8"))
                entries = {name: Quarantined(**entry) for name, entry in raw["quarantined"].items()}
                crashes += [Crash(**entry) for entry in raw["crashes"]]
                quarantined = entries | quarantined
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
                quarantined |= self._quarantined  # what was known of it still holds
                crashes += self._crashes
                if isinstance(fault, OSError):
                    there[number] = None  # tried again; the others are said once: it is read every few seconds
                log.error("%s cannot be read, what it says is not known: %s", path, fault)
        self._quarantined, self._seen = quarantined, there
        self._crashes = [crash for number, crash in enumerate(crashes) if crash not in crashes[:number]]

    def _write(self, *, lifted: bool) -> None:
        """Whole or not at all: to the disk, else to memory, else it holds until this process ends. The log says so.

        Args:
            lifted: somebody was taken out, so what a marker says that cannot be written must not count any more.
        """
        if not self._paths:
            return
        body = {
            "v": 1,
            "quarantined": {name: asdict(entry) for name, entry in self._quarantined.items()},
            "crashes": [asdict(crash) for crash in self._crashes],
        }
        text = json.dumps(body, indent=1) + "\n"
        taken = next((path for path in self._paths if put(path, text)), None)
        if taken is None:
            log.error("the next start will not know who is in quarantine")
        elif taken == self._paths[0] or lifted:
            for other in self._paths:
                if other != taken:
                    with suppress(OSError):
                        other.unlink()
        self._seen = [identity(path) for path in self._paths]


def put(path: Path, text: str) -> bool:
    """Put a file in the place of what is there; False where the disk does not take it, and the log says why."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as fault:
        log.error("%s cannot be written: %s", path, fault)
        with suppress(OSError):
            fresh.unlink()
        return False
    return True


def identity(path: Path) -> tuple[int, ...] | None:
    """Changes when the file is replaced, also twice within one tick of the file system's clock. None where none is."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
