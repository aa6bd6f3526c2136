"""What one recorded exchange costs the serving process in CPU time, and for how much of it the GIL is held.

Each part alone, in one thread, over the same events, thread CPU time, the least of the repeats:

    describe   sampling parameters into a dict (vLLM's own SamplingParams)
    encode     events into lines of the log, but for their hash: held
    hash       SHA-256 of the lines, which are longer than the 2047 bytes from which hashlib gives the GIL up
    write      one write() of all lines, no fsync: the kernel's copy, without the GIL
    judge      an ending told to the judge (accuracy, agreement, missing) and to the report's figures: in the event loop
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from itertools import count, pairwise
from pathlib import Path

from understudy.engines.vllm_engine import describe_parameters
from understudy.judge.gates import Gate
from understudy.judge.verdict import Judge
from understudy.record import Accepted, Ended, Event
from understudy.record.lines import Chain, append_line
from understudy.record.scribe import Scribe
from understudy.report.tally import Tallies

REPEATS = 15
GATES = (Gate("accuracy", 0.05, pattern=r"(\w+)"), Gate("agreement", 0.1), Gate("missing", 0.05))


def measure_cost(path: Path, events: Sequence[Event]) -> dict[str, float]:
    """Microseconds an exchange, with one ending."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=256, seed=7, stop=["\n\n"], logprobs=1)
    whole, starts = in_lines(events)
    lines = [bytes(whole[start:end]) for start, end in pairwise(starts)]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    num_exchanges = len(events) // 2

    def least(run: Callable[[], object]) -> float:
        return min(cpu_s(run) for _ in range(REPEATS)) / num_exchanges * 1e6

    framed = least(lambda: in_lines(events))
    hashed = least(lambda: [sha256(line) for line in lines])
    describe = least(lambda: [describe_parameters(parameters) for _ in range(num_exchanges)])
    offsets = count(0, len(whole))  # of pages that the kernel has not had yet
    write = least(lambda: os.pwrite(fd, whole, next(offsets)))
    judge = least(lambda: tell(events))
    os.close(fd)
    path.unlink()
    return {
        "describe": describe, "encode": framed - hashed, "hash": hashed, "write": write, "judge": judge,
        "record, GIL held": describe + framed - hashed, "record, GIL free": hashed + write,
    }  # fmt: skip


def in_lines(events: Sequence[Event]) -> tuple[bytearray, list[int]]:
    """The log, in one buffer, as the writer's thread makes it, and where each line begins; at last, where it ends."""
    scribe, buffer, links, starts = Scribe(dict), bytearray(), Chain(), [0]
    for event in events:
        append_line(buffer, partial(_append, scribe, event), links)
        starts.append(len(buffer))
    return buffer, starts


def _append(scribe: Scribe, event: Event, line: bytearray) -> None:
    scribe.append(line, event)


def tell(events: Sequence[Event]) -> None:
    """Every exchange with its ending, as the archive does."""
    judge, tallies = Judge(GATES), Tallies()
    for accepted, ended in zip(events[::2], events[1::2], strict=True):
        assert isinstance(accepted, Accepted)
        assert isinstance(ended, Ended)
        judge.ended(accepted.exchange, ended.challenger, ended.ending)
        tallies.ended(accepted.exchange, ended.challenger, ended.ending)


def cpu_s(run: Callable[[], object]) -> float:
    """CPU time of this thread."""
    before_s = time.thread_time()
    run()
    return time.thread_time() - before_s
