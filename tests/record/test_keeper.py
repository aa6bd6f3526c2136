"""append() never waits, flush() tells the truth, and a store that fails is seen, survived and counted."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import RecordError
from understudy.record import Control, RecordKeeper, World, WriterLimits, decode, encode
from understudy.record.backlog import Flush
from understudy.record.lines import links_of
from understudy.record.log import SegmentLog

from .builders import (
    QUIET,
    SMALL,
    FakeDisk,
    accepted,
    ended,
    exchange,
    feedback,
    flush,
    open_keeper,
    whole_lines,
)

MINUTE_S = 60.0


def ids(folder: Path) -> list[str]:
    return [decode(line).get("exchange_id", "") for line in whole_lines(folder)]


@contextmanager
def keeping(folder: Path, **options: Any) -> Iterator[RecordKeeper]:
    keeper = open_keeper(folder, **options)
    try:
        yield keeper
    finally:
        with suppress(RecordError):
            keeper.close(MINUTE_S)


def test_flush_means_written_and_synced(tmp_path: Path) -> None:
    disk = FakeDisk()
    with keeping(tmp_path, disk=disk.seams()) as keeper:
        for number in range(3):
            keeper.append(accepted(number))
        flush(keeper)
        assert ids(tmp_path) == ["ex-0", "ex-1", "ex-2"]
        assert disk.calls == ["truncate", "write", "sync"]  # one group: one write, one fsync
        flush(keeper)
        assert disk.calls[3:] == []  # nothing new: nothing to do
        assert keeper.health() == (True, "")


def test_a_large_group_is_synced_in_parts(tmp_path: Path) -> None:
    disk = FakeDisk()
    with keeping(tmp_path, disk=disk.seams(), limits=SMALL) as keeper:
        for number in range(8):
            keeper.append(accepted(number))
        flush(keeper)
        assert ids(tmp_path) == [f"ex-{number}" for number in range(8)]
        assert disk.calls.count("sync") > 2


def test_the_next_group_is_encoded_while_the_disk_has_one(tmp_path: Path) -> None:
    disk, seen = FakeDisk(), threading.Semaphore(0)
    disk.may_sync.clear()

    def describe(parameters: Any) -> dict[str, Any]:
        seen.release()
        return dict(parameters)

    async def both(keeper: RecordKeeper) -> None:
        waiting = asyncio.create_task(keeper.flush())
        await asyncio.to_thread(disk.is_in_sync.wait)
        encoded = [await asyncio.to_thread(seen.acquire, timeout=MINUTE_S) for _ in range(len(first) + 1)]
        assert all(encoded)  # one of the second group, although the first is not on disk
        disk.may_sync.set()
        await waiting

    first = range(2)  # as many as fill a group: see below
    with keeping(tmp_path, disk=disk.seams(), limits=SMALL, describe_parameters=describe) as keeper:
        for number in range(8):
            keeper.append(accepted(number))
        asyncio.run(both(keeper))
        assert len(encode(accepted(0), dict)) * len(first) > SMALL.group_bytes
        assert ids(tmp_path) == [f"ex-{number}" for number in range(8)]


def test_a_disk_that_fails_while_the_next_group_is_encoded_loses_nothing(tmp_path: Path) -> None:
    disk = FakeDisk()
    with keeping(tmp_path, disk=disk.seams(), limits=SMALL) as keeper:
        disk.broken = {"sync": errno.EIO}
        for number in range(4):
            keeper.append(accepted(number))
        with pytest.raises(RecordError, match="recording is off"):
            flush(keeper)
        disk.broken = {}
        keeper.append(accepted(4))
        flush(keeper)
        assert keeper.num_lost == 0
        assert ids(tmp_path) == [f"ex-{number}" for number in range(5)]
    assert open_and_verify(tmp_path) == 5


def open_and_verify(folder: Path) -> int:
    """Records of a folder whose chain has no gap."""
    links = [links_of(line) for line in whole_lines(folder)]
    assert [link[0] for link in links if link is not None] == list(range(len(links)))
    return len(links)


def test_everything_is_written_without_flush_after_the_interval(tmp_path: Path) -> None:
    timeouts: queue.Queue[float] = queue.Queue()
    ticks: queue.Queue[None] = queue.Queue()
    now_s = 100.0

    def tick(event: threading.Event, timeout: float) -> None:
        timeouts.put(timeout)
        if not event.is_set():
            ticks.get()

    with keeping(tmp_path, world=World(monotonic=lambda: now_s, wait=tick)) as keeper:
        assert timeouts.get() == pytest.approx(0.05)
        keeper.append(accepted(1))
        ticks.put(None)
        assert timeouts.get() == pytest.approx(0.05)  # it waits again: the first cycle is over
        assert ids(tmp_path) == ["ex-1"]
        keeper._writer._stopping = True
        ticks.put(None)


def test_append_does_not_wait_for_a_disk_that_hangs_and_health_says_so(tmp_path: Path) -> None:
    disk, clock = FakeDisk(), [0.0]
    disk.may_sync.clear()
    world = replace(QUIET, monotonic=lambda: clock[0])
    with keeping(tmp_path, disk=disk.seams(), limits=SMALL, world=world) as keeper:
        keeper.append(accepted(0))

        async def hang() -> None:
            waiting = asyncio.create_task(keeper.flush())
            await asyncio.to_thread(disk.is_in_sync.wait)
            for number in range(1, 151):
                keeper.append(accepted(number))  # returns, although the writer does not
            assert keeper.num_lost == 50
            assert keeper.health() == (True, "50 events were lost")
            clock[0] = 9.0
            assert keeper.health() == (False, "the store has not answered for 9 s; 50 events were lost")
            assert not waiting.done()
            disk.may_sync.set()
            with pytest.raises(RecordError, match="50 events were lost"):
                await waiting

        asyncio.run(hang())
        flush(keeper)  # it was said once
        clock[0] = 99.0  # the attempt is over: nothing is stalled
        assert keeper.health() == (True, "50 events were lost")
    assert [id for id in ids(tmp_path) if id] == [f"ex-{number}" for number in range(101)]
    assert sum(decode(line).get("num_lost", 0) for line in whole_lines(tmp_path)) == 50


@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("broken", [errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_store_that_fails_turns_recording_off_and_on_again(tmp_path: Path, call: str, broken: int) -> None:
    disk = FakeDisk()
    with keeping(tmp_path, disk=disk.seams()) as keeper:
        keeper.append(accepted(0))
        flush(keeper)
        disk.broken = {call: broken}
        keeper.append(accepted(1))
        for _ in range(3):
            with pytest.raises(RecordError, match=os.strerror(broken)):
                flush(keeper)
        ok, detail = keeper.health()
        assert not ok
        assert os.strerror(broken) in detail
        keeper.append(accepted(2))
        disk.broken = {}
        flush(keeper)
        assert keeper.health() == (True, "")
        assert ids(tmp_path) == ["ex-0", "ex-1", "ex-2"]
        assert [exchange["exchange_id"] for exchange in keeper.find("ex-2")] == ["ex-2"]


def test_a_disk_that_fills_up_part_way_leaves_no_garbage_and_recovers(tmp_path: Path) -> None:
    one = len(frame_of_one(tmp_path / "size"))
    for free_bytes in range(0, 3 * one, 97):
        folder, disk = tmp_path / str(free_bytes), FakeDisk(free_bytes)
        with keeping(folder, disk=disk.seams()) as keeper:
            for number in range(3):
                keeper.append(accepted(number))
            with pytest.raises(RecordError, match="space"):
                flush(keeper)
            disk.free_bytes = 1 << 20
            flush(keeper)
            assert ids(folder) == ["ex-0", "ex-1", "ex-2"]
            assert [len(keeper.find(f"ex-{number}")) for number in range(3)] == [1, 1, 1]


def frame_of_one(folder: Path) -> bytes:
    with keeping(folder) as keeper:
        keeper.append(accepted(0))
        flush(keeper)
        return whole_lines(folder)[0]


def test_the_backlog_is_bounded_and_what_is_lost_is_counted_and_recorded(tmp_path: Path) -> None:
    disk = FakeDisk(free_bytes=0)
    with keeping(tmp_path, disk=disk.seams(), limits=SMALL) as keeper:
        for round_ in range(10):
            for number in range(10):
                keeper.append(accepted(10 * round_ + number))
            with pytest.raises(RecordError, match="space"):
                flush(keeper)
            assert keeper._writer._backlog.num_bytes < 2 * SMALL.max_backlog_bytes
        num_lost = keeper.num_lost
        assert 75 < num_lost < 100
        assert f"{num_lost} events were lost" in keeper.health()[1]
        disk.free_bytes = 1 << 20
        with pytest.raises(RecordError, match=f"{num_lost} events were lost"):
            flush(keeper)
        flush(keeper)
        assert keeper.health() == (True, f"{num_lost} events were lost")
        keeper.append(accepted(1000))
        flush(keeper)
    documents = [decode(line) for line in whole_lines(tmp_path)]
    kept = [f"ex-{number}" for number in range(100 - num_lost)]  # the oldest are kept
    assert [document.get("exchange_id") for document in documents] == [*kept, None, "ex-1000"]
    gap = documents[-2]
    assert (gap["kind"], gap["action"], gap["num_lost"]) == ("control", "recording_resumed", num_lost)
    with keeping(tmp_path) as keeper:
        assert keeper.recovery.num_lost == num_lost


def test_it_tries_again_every_second_by_its_own_clock(tmp_path: Path) -> None:
    disk, now_s = FakeDisk(free_bytes=0), [100.0]
    timeouts: queue.Queue[float] = queue.Queue()
    ticks: queue.Queue[None] = queue.Queue()

    def tick(event: threading.Event, timeout: float) -> None:
        timeouts.put(timeout)
        if not event.is_set():
            ticks.get()
            now_s[0] += timeout

    world = World(monotonic=lambda: now_s[0], wait=tick)
    with keeping(tmp_path, disk=disk.seams(), world=world) as keeper:
        keeper.append(accepted(1))
        waited = []
        for _ in range(4):
            waited.append(timeouts.get())
            ticks.put(None)
        assert waited == pytest.approx([0.05, 1.0, 1.0, 1.0])
        assert disk.calls.count("write") >= 3
        disk.free_bytes = 1 << 20
        timeouts.get()
        ticks.put(None)
        assert timeouts.get() == pytest.approx(0.05)
        assert ids(tmp_path) == ["ex-1"]
        keeper._writer._stopping = True
        ticks.put(None)


def fill_disk(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_real_full_disk(tmp_path: Path) -> None:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip(made.stderr.decode())
    try:
        with keeping(tmp_path / "r") as keeper:
            keeper.append(accepted(0))
            flush(keeper)
            ballast = tmp_path / "ballast"
            fill_disk(ballast)
            for number in range(1, 40):
                keeper.append(accepted(number))  # some still fit into the last page
            with pytest.raises(RecordError, match="No space left"):
                flush(keeper)
            assert keeper.health()[0] is False
            ballast.unlink()
            flush(keeper)
            assert keeper.health() == (True, "")
            assert ids(tmp_path / "r") == [f"ex-{number}" for number in range(40)]
        fill_disk(ballast)
        with keeping(tmp_path / "r") as keeper:  # opens on a full disk, too
            assert keeper.recovery.num_records == 40
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_writer_that_dies_is_visible_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def die(self: SegmentLog, lines: bytes, starts: list[int]) -> None:
        raise MemoryError("no more")

    keeper = open_keeper(tmp_path)
    monkeypatch.setattr(SegmentLog, "append", die)
    keeper.append(accepted(1))
    with pytest.raises(RecordError, match="MemoryError: no more"):
        flush(keeper)
    keeper._writer._thread.join(MINUTE_S)
    assert "the record's writer died" in caplog.text
    keeper.append(accepted(2))  # still harmless
    ok, detail = keeper.health()
    assert not ok
    assert "MemoryError: no more; 2 events were lost" in detail
    with pytest.raises(RecordError, match="MemoryError"):
        flush(keeper)
    with pytest.raises(RecordError, match="MemoryError"):
        keeper.close()
    monkeypatch.undo()
    open_keeper(tmp_path).close()  # the folder is free again


def test_close_writes_what_is_queued_and_gives_the_folder_back(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    keeper.append(accepted(1))
    with pytest.raises(RecordError, match="has a writer already"):
        open_keeper(tmp_path)
    keeper.close()
    keeper.close()
    assert ids(tmp_path) == ["ex-1"]
    assert keeper.health()[0] is False
    keeper.append(accepted(2))
    keeper._writer._queue.append(accepted(3))  # a thread that was in append() at that very moment
    with pytest.raises(RecordError, match="2 events were lost"):
        keeper.close()
    assert keeper.num_lost == 2
    with pytest.raises(RecordError, match=r"it was closed; 2 events were lost"):
        flush(keeper)
    open_keeper(tmp_path).close()


def test_close_says_what_it_could_not_write(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path, disk=FakeDisk(free_bytes=0).seams())
    for number in range(3):
        keeper.append(accepted(number))
    with pytest.raises(RecordError, match=r"it was closed while recording was off: .*space.*; 3 events were lost"):
        keeper.close()
    assert keeper.num_lost == 3


def test_close_gives_up_on_a_store_that_does_not_answer_and_loses_nothing(tmp_path: Path) -> None:
    disk = FakeDisk()
    disk.may_sync.clear()
    keeper = open_keeper(tmp_path, disk=disk.seams())
    keeper.append(accepted(1))
    keeper._writer._wake.set()
    disk.is_in_sync.wait()
    keeper.append(accepted(2))
    with pytest.raises(RecordError, match=r"has not answered for 0.01 s"):
        keeper.close(timeout_s=0.01)
    disk.may_sync.set()
    keeper.close(MINUTE_S)
    assert ids(tmp_path) == ["ex-1", "ex-2"]


def test_an_exchange_whose_parameters_cannot_be_described_is_recorded_without_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with keeping(tmp_path) as keeper:
        keeper.append(accepted(1, parameters="no dict"))
        loop: dict[str, Any] = {}
        loop["loop"] = loop
        keeper.append(accepted(2, parameters=loop))
        keeper.append(accepted(3))
        flush(keeper)
        parameters = [keeper.find(f"ex-{number}")[0]["parameters"] for number in (1, 2, 3)]
        assert ["undescribed" in each for each in parameters] == [True, True, False]
        assert (keeper.num_undescribed, keeper.num_lost) == (2, 0)
        assert caplog.text.count("parameters cannot be recorded") == 1


def test_an_event_that_cannot_be_written_is_counted_and_the_others_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with keeping(tmp_path) as keeper:
        keeper.append(accepted(1))
        broken: Any = replace(accepted(2), exchange=replace(exchange(2), champion=None))  # type: ignore[arg-type]
        keeper.append(broken)
        keeper.append(ended(1))
        with pytest.raises(RecordError, match="1 events were lost"):
            flush(keeper)
        assert keeper.num_lost == 1
        assert "an event cannot be recorded: Accepted" in caplog.text
    assert [id for id in ids(tmp_path) if id] == ["ex-1", "ex-1"]


def entries(folder: Path) -> list[str]:
    return [one["action"] for one in map(decode, whole_lines(folder)) if one["kind"] == "control"]


def test_what_was_lost_before_an_entry_is_not_taken_for_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FakeDisk()
    disk.may_sync.clear()
    with keeping(tmp_path, disk=disk.seams(), limits=SMALL) as keeper:
        keeper.append(accepted(0))
        keeper._writer._wake.set()
        disk.is_in_sync.wait()
        for number in range(1, 151):
            keeper.append(accepted(number))
        disk.may_sync.set()
        keeper.enter(Control("promote", 1.0))  # the queue is full, and no flush() has spoken of the 50
        broken: Any = replace(accepted(2), exchange=replace(exchange(2), champion=None))  # type: ignore[arg-type]
        with monkeypatch.context() as patched:
            patched.setattr(keeper, "health", lambda: (keeper.append(broken) or True, ""))
            keeper.enter(Control("retention", 2.0))  # something is lost between its beginning and its end
        assert keeper.num_lost == 51
        with pytest.raises(RecordError, match="51 events were lost"):
            flush(keeper)
        assert sorted(entries(tmp_path)) == ["promote", "recording_resumed", "recording_resumed", "retention"]
    assert open_and_verify(tmp_path) == 101 + 4


def test_an_entry_that_is_refused_is_never_made(tmp_path: Path) -> None:
    disk = FakeDisk(free_bytes=0)
    with keeping(tmp_path, disk=disk.seams()) as keeper:
        keeper.append(accepted(0))
        with pytest.raises(RecordError, match="space"):
            flush(keeper)
        with pytest.raises(RecordError, match=r"nothing is recorded: recording is off: .*space"):
            keeper.enter(Control("promote", 1.0))
        disk.free_bytes = 1 << 20
        flush(keeper)
        broken: Any = replace(accepted(2), exchange=replace(exchange(2), champion=None))  # type: ignore[arg-type]
        with pytest.raises(RecordError, match="it cannot be recorded: Accepted"):
            keeper.enter(broken)
        assert keeper.num_lost == 1
        keeper.enter(Control("pause", 1.0))
        keeper.close()
        with pytest.raises(RecordError, match="it was closed"):
            keeper.enter(Control("promote", 1.0))
    assert sorted(entries(tmp_path)) == ["pause", "recording_resumed"]


@pytest.mark.parametrize("group_bytes", [1, 2**21], ids=["large", "small"])  # an entry that fills a group, or not
@pytest.mark.parametrize("call", ["write", "sync"])
def test_an_entry_at_which_the_store_fails_is_told_and_made_once_when_it_is_asked_for_again(
    tmp_path: Path, call: str, group_bytes: int
) -> None:
    disk = FakeDisk()
    with keeping(tmp_path, disk=disk.seams(), limits=WriterLimits(group_bytes=group_bytes)) as keeper:
        keeper.append(accepted(1))
        flush(keeper)
        for _ in range(2):
            disk.broken = {call: errno.EIO}
            with pytest.raises(RecordError, match="the store does not take it"):
                keeper.enter(Control("promote", 1.0))
            assert entries(tmp_path) == []  # whoever reads it now sees what was told, too
        disk.broken = {}
        keeper.enter(Control("promote", 2.0))  # needs no other event to find the store again
        keeper.append(accepted(2))
    assert entries(tmp_path) == ["promote"]
    assert open_and_verify(tmp_path) == 3


def test_an_entry_that_could_not_be_cut_away_at_once_is_gone_when_the_record_is_closed(tmp_path: Path) -> None:
    class GoesBad(FakeDisk):
        def _sync(self, fd: int) -> None:
            if len(whole_lines(tmp_path)) > 1:
                self.broken = {"truncate": errno.EIO}
                raise OSError(errno.EIO, "Input/output error")
            super()._sync(fd)

    disk = GoesBad()
    with keeping(tmp_path, disk=disk.seams()) as keeper:
        keeper.append(accepted(1))
        flush(keeper)
        with pytest.raises(RecordError, match="the store does not take it"):
            keeper.enter(Control("promote", 1.0))
        assert entries(tmp_path) == ["promote"]
        disk.broken = {}
    assert entries(tmp_path) == []
    assert open_and_verify(tmp_path) == 1


def test_what_is_refused_because_the_backlog_is_full_is_not_lost(tmp_path: Path) -> None:
    disk = FakeDisk(free_bytes=0)
    with keeping(tmp_path, disk=disk.seams(), limits=SMALL) as keeper:
        for number in range(90):
            keeper.append(accepted(number))
        with pytest.raises(RecordError):
            flush(keeper)
        num_lost = keeper.num_lost
        assert num_lost
        for wanted in ({"or_never": True}, {"when_kept": True}):
            with pytest.raises(RecordError, match="recording is off"):
                asyncio.run(keeper._flush(Control("promote", 1.0), **wanted))
        assert keeper.num_lost == num_lost


def test_an_entry_waits_for_what_is_before_it_and_is_taken_back_alone(tmp_path: Path) -> None:
    disk = FakeDisk()
    disk.may_sync.clear()
    with keeping(tmp_path, disk=disk.seams()) as keeper:
        keeper.append(accepted(1))
        keeper._writer._wake.set()
        disk.is_in_sync.wait()
        keeper.append(accepted(2))
        fails: list[RecordError] = []

        def enter() -> None:
            try:
                keeper.enter(Control("promote", 1.0))
            except RecordError as error:
                fails.append(error)

        entering = threading.Thread(target=enter)
        entering.start()
        while not any(isinstance(item, Flush) for item in keeper._writer._queue):
            keeper._writer._wake.wait(0.01)
        keeper.append(accepted(3))
        disk.free_bytes = sum(map(len, whole_lines(tmp_path))) + 100  # the second exchange, and part of the entry
        disk.may_sync.set()
        entering.join(MINUTE_S)
        disk.free_bytes = float("inf")
    assert len(fails) == 1
    assert ids(tmp_path) == ["ex-1", "ex-2", "ex-3"]
    assert open_and_verify(tmp_path) == 3


def test_a_cancelled_flush_and_a_closed_loop_harm_nobody(tmp_path: Path) -> None:
    disk = FakeDisk()
    disk.may_sync.clear()
    with keeping(tmp_path, disk=disk.seams()) as keeper:
        keeper.append(accepted(1))

        async def leave() -> None:
            waiting = asyncio.create_task(keeper.flush())
            await asyncio.to_thread(disk.is_in_sync.wait)
            waiting.cancel()

        asyncio.run(leave())  # its loop is closed before the flush is over
        disk.may_sync.set()
        keeper.append(feedback("ex-1"))
        flush(keeper)
        assert keeper.health() == (True, "")


def test_a_cancelled_flush_does_not_disturb_its_loop(tmp_path: Path) -> None:
    disk, complaints = FakeDisk(), []
    disk.may_sync.clear()
    with keeping(tmp_path, disk=disk.seams()) as keeper:
        keeper.append(accepted(1))

        async def leave_and_stay() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: complaints.append(context))
            waiting = asyncio.create_task(keeper.flush())
            await asyncio.to_thread(disk.is_in_sync.wait)
            waiting.cancel()
            disk.may_sync.set()
            await keeper.flush()

        asyncio.run(leave_and_stay())
    assert complaints == []


def test_a_backlog_is_written_in_groups_as_far_as_the_disk_has_room(tmp_path: Path) -> None:
    one = len(frame_of_one(tmp_path / "size"))
    limits = WriterLimits(max_backlog_bytes=20 * one, group_bytes=one + one // 2)  # two to a group
    disk, tmp_path = FakeDisk(free_bytes=0), tmp_path / "r"
    with keeping(tmp_path, disk=disk.seams(), limits=limits) as keeper:
        for number in range(6):
            keeper.append(accepted(number))
        with pytest.raises(RecordError, match="space"):
            flush(keeper)
        disk.free_bytes = 2 * one + one // 2
        with pytest.raises(RecordError, match="space"):
            flush(keeper)
        assert 0 < len(keeper.find("ex-0")) <= 1
        disk.free_bytes = 1 << 20
        flush(keeper)
    assert ids(tmp_path) == [f"ex-{number}" for number in range(6)]


def test_many_threads_append_at_once(tmp_path: Path) -> None:
    with keeping(tmp_path, world=World(), limits=WriterLimits(fsync_interval_s=0.001)) as keeper:

        def append(first: int) -> None:
            for number in range(first, first + 250):
                keeper.append(accepted(number))

        threads = [threading.Thread(target=append, args=(250 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        flush(keeper)
        assert keeper.num_lost == 0
    assert sorted(ids(tmp_path)) == sorted(f"ex-{number}" for number in range(1000))
