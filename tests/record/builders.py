"""Events as the journey would make them, and a world and a disk that a test controls."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from understudy.record import Accepted, Disk, Ended, Feedback, RecordKeeper, World, WriterLimits
from understudy.record.lines import scan
from understudy.types import (
    Answer,
    Comparison,
    Divergence,
    DraftCounts,
    Ending,
    Exchange,
    Measured,
    Observation,
    Outcome,
    RequestFacts,
    Score,
    State,
    Taken,
    Timings,
)

APART = Divergence((0.5, float("inf")), (0.25, 1.0), (0.5, 1.0), (2.0, 3.0))


def observation(model: str, *, scores: tuple[Score, ...] = (), num_tokens: int = 3) -> Observation:
    tokens = tuple(range(1000, 1000 + num_tokens))
    answer = Answer(tokens, "yes\nand “no” \x00 \u2028", "stop", tuple(-0.5 for _ in tokens))
    return Observation(
        model,
        Outcome.FINISHED,
        (1, 2, 3),
        (answer, Answer((), "", None)),
        Timings(1.5, 1.75, 2.0),
        scores,
        draft=DraftCounts(proposed=7, accepted=5, lost=2, realigned=1) if scores else None,
        measured=Measured(0.125, 0.25, 0.5, 2, 1.5, ((-35, 2), (-34, 1)), 0.375),
        taken=Taken(4096, 1024.5, 0.375, 0.25, 0.125),
    )


def exchange(number: int, *, parameters: Any = None, client_request_id: str | None = None) -> Exchange:
    facts = RequestFacts(
        endpoint="/v1/chat/completions",
        client_request_id=client_request_id or f"client-{number}",
        tags=MappingProxyType({"session": f"s{number}"}),
        body=b'{"messages": []}',
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    return Exchange(
        exchange_id=f"ex-{number}",
        request_id=f"chatcmpl-{number}",
        arrived_unix_s=1_700_000_000.25 + number,
        facts=facts,
        parameters={"temperature": 0.0} if parameters is None else parameters,
        prompt_text="Say yes.",
        champion=observation("champion"),
    )


def accepted(number: int, *challengers: str, offered: Mapping[str, int] | None = None, **fields: Any) -> Accepted:
    return Accepted(exchange(number, **fields), challengers or ("b",), offered or {})


def ended(number: int, challenger: str = "b", state: State = State.COMPARED, reason: str | None = None) -> Ended:
    ending = Ending(state, reason)
    if state is State.COMPARED:
        seen = observation(
            challenger, scores=(Score((-0.25, float("-inf")), (1, 7), (0.5, 2.0), (4, 9), APART, 0.0625),)
        )
        ending = Ending(state, challenger=seen, comparison=Comparison({"top1": 0.5}))
    return Ended(f"ex-{number}", challenger, ending, 1_700_000_100.0 + number)


def feedback(id: str, label: str = "good") -> Feedback:
    return Feedback(id, label, 1_700_000_200.0)


def plain(parameters: Any) -> Mapping[str, Any]:
    assert isinstance(parameters, dict)
    return parameters


def wait_until_asked(event: threading.Event, timeout: float) -> None:
    """The writer does nothing by itself, only for flush() and close()."""
    event.wait()


QUIET = World(wait=wait_until_asked)


def open_keeper(folder: Path, *, world: World = QUIET, **options: Any) -> RecordKeeper:
    return RecordKeeper.open(folder, **{"describe_parameters": plain, "world": world, **options})


def small_queue(monkeypatch: pytest.MonkeyPatch, max_queued: int = 20) -> None:
    """Every keeper that somebody else opens takes no more than that, and writes only when it must."""
    options: Any = RecordKeeper.open
    limits = WriterLimits(max_queued=max_queued)
    for name, value in (("limits", limits), ("world", QUIET)):
        monkeypatch.setitem(options.__func__.__kwdefaults__, name, value)


def flush(keeper: RecordKeeper) -> None:
    asyncio.run(keeper.flush())


def whole_lines(folder: Path) -> list[bytes]:
    """Every line of a log in which nothing is damaged."""
    damage: list[Exception] = []
    lines = [line for _, line in scan(folder, damage.append)]
    assert not damage
    return lines


class FakeDisk:
    """A disk with ``free_bytes`` left, which writes what still fits and then says ENOSPC."""

    def __init__(self, free_bytes: float = float("inf")) -> None:
        self.free_bytes = free_bytes
        self.broken: dict[str, int] = {}  # call: errno
        self.calls: list[str] = []
        self.is_in_sync, self.may_sync = threading.Event(), threading.Event()  # clear the latter: it hangs
        self.may_sync.set()

    def seams(self) -> Disk:
        return Disk(self._write, self._sync, self._truncate)

    def _write(self, fd: int, data: memoryview) -> int:
        self._call("write")
        if self.free_bytes <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_bytes = os.write(fd, data[: int(min(len(data), self.free_bytes))])
        self.free_bytes -= num_bytes
        return num_bytes

    def _sync(self, fd: int) -> None:
        self._call("sync")
        self.is_in_sync.set()
        self.may_sync.wait()
        os.fsync(fd)

    def _truncate(self, fd: int, size_bytes: int) -> None:
        self._call("truncate")
        self.free_bytes += os.fstat(fd).st_size - size_bytes
        os.ftruncate(fd, size_bytes)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise OSError(self.broken[name], os.strerror(self.broken[name]))


SMALL = WriterLimits(max_queued=100, max_backlog_bytes=6_000, group_bytes=1_500)
