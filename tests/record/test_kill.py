"""kill -9 at any moment: what flush() acknowledged is there, once, and the folder goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

from understudy.record import World, WriterLimits, decode
from understudy.types import State

from .builders import accepted, ended, open_keeper, whole_lines

NUM_KILLS = 20


def write_until_killed(folder: Path, first: int, acknowledge: int) -> None:
    """Exchanges from ``first`` on; each number goes to the pipe after the flush() that covers it."""
    keeper = open_keeper(folder, world=World(), limits=WriterLimits(fsync_interval_s=0.001), max_segment_bytes=20_000)

    async def live() -> None:
        number = first
        for left in keeper.recovery.unfinished:
            keeper.append(ended(int(left.exchange_id[3:]), left.challenger, State.EXPIRED, "restart"))
        while True:
            for _ in range(7):
                keeper.append(accepted(number))
                if number % 3:
                    keeper.append(ended(number))
                number += 1
            await keeper.flush()
            os.write(acknowledge, b"%d\n" % (number - 1))

    asyncio.run(live())


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(5)
    acknowledged, first = -1, 0
    for _ in range(NUM_KILLS):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                write_until_killed(tmp_path, first, writing)
            finally:
                os._exit(1)
        os.close(writing)
        heard = b""
        for _ in range(chance.randint(1, 4)):
            heard += os.read(reading, 4096)  # from here on the child runs on for a random time
        for _ in range(chance.randint(0, 20_000)):
            pass
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        while more := os.read(reading, 4096):
            heard += more
        os.close(reading)
        acknowledged = int(heard.split()[-1])

        keeper = open_keeper(tmp_path)
        keeper.close()
        documents = [decode(line) for line in whole_lines(tmp_path)]
        found = Counter(d["exchange_id"] for d in documents if d["kind"] == "accepted")
        assert {f"ex-{number}" for number in range(acknowledged + 1)} <= found.keys()
        assert set(found.values()) == {1}
        ends = Counter(d["exchange_id"] for d in documents if d["kind"] == "ended")
        assert set(ends.values()) == {1}
        assert {f"ex-{number}" for number in range(acknowledged + 1) if number % 3} <= ends.keys()
        counts = keeper.recovery.counts["b"]
        assert (counts.sampled, counts.pending) == (len(found), len(found) - len(ends))
        assert keeper.recovery.num_orphans == 0
        assert {u.exchange_id for u in keeper.recovery.unfinished} == found.keys() - ends.keys()
        first = 1 + max(int(id[3:]) for id in found)
