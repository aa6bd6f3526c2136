"""kill -9 at any moment of writing and sealing: what flush() acknowledged is there, once, and the folder goes on."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from understudy.errors import RecordError
from understudy.record import Disk, Recovery, World, WriterLimits, scan
from understudy.record.seal import seal
from understudy.record.sealed import arrow_schema
from understudy.record.sources import Source
from understudy.types import State

from .builders import accepted, ended, open_keeper

NUM_KILLS = 100
WRITE_BYTES = 700  # one os.write(): about half a record, so that there are many moments in the middle of one


class FatalDisk:
    """Kills its own process at the n-th os.write(), of which a random part has happened, or never."""

    def __init__(self, fatal_write: int | None, chance: random.Random) -> None:
        self._fatal_write, self._chance = fatal_write, chance
        self._num_writes = itertools.count()

    def write(self, fd: int, data: memoryview) -> int:
        if next(self._num_writes) == self._fatal_write:
            os.write(fd, data[: self._chance.randint(0, WRITE_BYTES)])
            os.kill(os.getpid(), signal.SIGKILL)
        return os.write(fd, data[:WRITE_BYTES])


def write_until_killed(folder: Path, first: int, acknowledge: int, disk: FatalDisk) -> None:
    """Exchanges from ``first`` on; each number goes to the pipe after the flush() that covers it."""
    keeper = open_keeper(
        folder,
        world=World(),
        limits=WriterLimits(fsync_interval_s=0.001, group_bytes=3_000),  # several a flush: written in two threads
        max_segment_bytes=6_000,
        disk=Disk(write=disk.write),
    )

    async def live() -> None:
        number = first
        for left in keeper.recovery.unfinished:
            keeper.append(ended(int(left.exchange_id[3:]), left.challenger, State.EXPIRED, "restart"))
        sealing = threading.Thread(target=seal_forever, args=(folder,), daemon=True)
        sealing.start()
        while True:
            for _ in range(7):
                keeper.append(accepted(number))
                if number % 3:
                    keeper.append(ended(number))
                number += 1
            await keeper.flush()
            os.write(acknowledge, b"%d\n" % (number - 1))

    asyncio.run(live())


def seal_forever(folder: Path) -> None:
    while True:
        with suppress(RecordError):  # nothing is there yet
            seal(Source.at(folder), "replica-0")


def live_and_die(folder: Path, first: int, chance: random.Random, *, by_itself: bool) -> int | None:
    """The last number that a child acknowledged before it was killed."""
    reading, writing = os.pipe()
    fatal_write = chance.randint(1, 80) if by_itself else None
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(folder, first, writing, FatalDisk(fatal_write, chance))
        finally:
            os._exit(1)
    os.close(writing)
    heard = b""
    if not by_itself:
        heard = os.read(reading, 4096)
        time.sleep(chance.random() / 50)
        os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    while more := os.read(reading, 4096):
        heard += more
    os.close(reading)
    return int(heard.split()[-1]) if heard else None


def check(folder: Path, recovery: Recovery, acknowledged: int) -> None:
    """Everything once, and the same counts from a reader who trusts no manifest."""
    damage = list[Exception]()
    heads = [head for _, head in Source.at(folder).heads(damage.append)]
    assert not damage
    found = Counter(head.exchange_id for head in heads if head.kind == "accepted")
    ends = Counter(head.exchange_id for head in heads if head.kind == "ended")
    assert found == dict.fromkeys((f"ex-{number}" for number in range(len(found))), 1)
    assert set(ends.values()) <= {1}
    assert {f"ex-{number}" for number in range(acknowledged + 1) if number % 3} <= ends.keys()
    counts = recovery.counts["b"]
    assert (counts.sampled, counts.pending) == (len(found), len(found) - len(ends))
    assert {u.exchange_id for u in recovery.unfinished} == found.keys() - ends.keys()


@pytest.mark.chaos
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    arrow_schema()  # import pyarrow here, or the children would spend their short lives at it
    chance = random.Random(5)
    acknowledged, first, num_torn, num_sealed = -1, 0, 0, set[int]()
    for life in range(NUM_KILLS):
        last = live_and_die(tmp_path, first, chance, by_itself=life % 2 == 0)
        acknowledged = acknowledged if last is None else last

        keeper = open_keeper(tmp_path)
        keeper.close()
        num_torn += keeper.recovery.num_cut_bytes > 0
        num_sealed.add(len(Source.at(tmp_path).sealed()))
        recovery = keeper.recovery
        assert (recovery.num_orphans, recovery.num_damaged) == (0, 0)
        first = recovery.counts["b"].sampled  # the log is in order: with the last one all before it are there
        assert first > acknowledged
        if life % 10 == 9:
            check(tmp_path, recovery, acknowledged)
    assert num_torn >= NUM_KILLS // 10  # lives that ended in the middle of a record were really among them
    assert len(num_sealed) > NUM_KILLS // 20  # and so were lives in which segments were sealed, few on a busy machine
    views = list(scan(tmp_path))
    assert len(views) == first
