"""The log survives a writer that dies at any byte, finds damage, and has one writer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.errors import RecordError
from understudy.record import recording, store
from understudy.record.lines import Place, frame, read, scan, segment_path, segments
from understudy.record.log import Disk, SegmentLog

from .builders import FakeDisk, whole_lines

LINES = [frame(b'{"v":1,"n":%d,"text":"%b"}' % (n, b"x" * n)) for n in range(5)]


def open_log(folder: Path, disk: Disk | None = None, max_segment_bytes: int = 1 << 20) -> SegmentLog:
    return SegmentLog(folder, max_segment_bytes=max_segment_bytes, disk=disk or Disk())


def append(log: SegmentLog, lines: list[bytes]) -> list[Place]:
    return log.append(b"".join(lines), [sum(map(len, lines[:n])) for n in range(len(lines))])


def write(folder: Path, lines: list[bytes]) -> list[Place]:
    log = open_log(folder)
    places = append(log, lines)
    log.close()
    return places


def test_lines_come_back_and_are_found_at_their_places(tmp_path: Path) -> None:
    places = write(tmp_path / "r", LINES)
    places += write(tmp_path / "r", LINES[:2])
    assert whole_lines(tmp_path / "r") == LINES + LINES[:2]
    assert [read(tmp_path / "r", place) for place in places] == LINES + LINES[:2]
    assert places == sorted(places)


def test_what_a_killed_writer_left_is_synced_before_it_is_believed(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    disk = FakeDisk()
    open_log(tmp_path, disk.seams()).close()
    assert disk.calls == ["sync"]


def test_files_and_folder_are_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        write(tmp_path / "new" / "r", LINES)
    finally:
        os.umask(previous)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new").rglob("*")}
    assert modes == {"r": 0o700, "lock": 0o600, "segment-00000001.jsonl": 0o600}


def test_a_torn_tail_is_cut_at_every_byte_of_the_last_record(tmp_path: Path) -> None:
    whole = b"".join(LINES)
    before = len(whole) - len(LINES[-1])
    for size in range(before, len(whole) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        segment_path(folder, 1).write_bytes(whole[:size])
        is_whole = size == len(whole)
        assert whole_lines(folder) == (LINES if is_whole else LINES[:-1])  # a reader before any writer
        log = open_log(folder)
        assert log.num_cut_bytes == (0 if is_whole else size - before)
        append(log, [LINES[0]])
        log.close()
        assert whole_lines(folder) == (LINES if is_whole else LINES[:-1]) + [LINES[0]]


def test_a_tail_of_zeros_is_cut(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(bytes(3 << 20))  # a file that grew before its data came, longer than one read
    log = open_log(tmp_path)
    assert log.num_cut_bytes == 3 << 20
    log.close()
    assert whole_lines(tmp_path) == LINES


def test_a_file_of_nothing_but_a_torn_line_is_emptied(tmp_path: Path) -> None:
    segment_path(tmp_path, 1).write_bytes(LINES[0][:-1])
    log = open_log(tmp_path)
    assert log.num_cut_bytes == len(LINES[0]) - 1
    log.close()
    assert segment_path(tmp_path, 1).read_bytes() == b""


def test_every_flipped_byte_in_the_middle_is_reported_with_file_and_offset(tmp_path: Path) -> None:
    places = write(tmp_path, LINES)
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    start, end = places[2].offset_bytes, places[3].offset_bytes
    chain = range(whole.index(b'"chain":"', start) + 9, whole.index(b'","n":', start))  # the audit's business
    for offset in set(range(start, end - 1)) - set(chain):
        for mask in (0x01, 0x80):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ mask]) + whole[offset + 1 :])
            errors: list[RecordError] = []
            lines = [line for _, line in scan(tmp_path, errors.append)]
            assert lines == LINES[:2] + LINES[3:]
            assert f"{path} at byte {start}" in str(errors[0])
            with pytest.raises(RecordError, match=f"at byte {start}"):
                read(tmp_path, places[2])


def test_a_lost_line_break_and_a_torn_line_in_an_older_segment_are_damage(tmp_path: Path) -> None:
    segment_path(tmp_path, 1).write_bytes(LINES[0][:-1] + LINES[1] + LINES[2] + LINES[3][:-4])
    segment_path(tmp_path, 2).write_bytes(LINES[4])
    errors: list[RecordError] = []
    assert [line for _, line in scan(tmp_path, errors.append)] == [LINES[2], LINES[4]]
    assert ["segment-00000001" in str(error) for error in errors] == [True, True]


def test_damage_is_left_as_it_is_when_a_writer_opens(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    path = segment_path(tmp_path, 1)
    damaged = path.read_bytes().replace(b"xxxx", b"xxyx")
    path.write_bytes(damaged)
    open_log(tmp_path).close()
    assert path.read_bytes() == damaged


def test_segments_rotate_by_size(tmp_path: Path) -> None:
    log = open_log(tmp_path, max_segment_bytes=100)
    for line in LINES * 3:
        append(log, [line])
    log.close()
    assert len(segments(tmp_path)) > 3
    assert whole_lines(tmp_path) == LINES * 3
    assert all(segment_path(tmp_path, n).stat().st_size < 100 + len(LINES[-1]) for n in segments(tmp_path))
    (tmp_path / "segment-copy of 3.jsonl").write_text("not ours")
    assert whole_lines(tmp_path) == LINES * 3


def test_a_failed_append_leaves_nothing_in_the_middle(tmp_path: Path) -> None:
    for free_bytes in range(0, sum(map(len, LINES)), 5):
        folder, disk = tmp_path / str(free_bytes), FakeDisk()
        log = open_log(folder, disk.seams())
        append(log, LINES[:1])
        disk.free_bytes = free_bytes
        for _ in range(2):
            with pytest.raises(OSError, match="space"):
                append(log, LINES)
        disk.free_bytes = 1 << 20
        places = append(log, LINES)
        log.close()
        assert whole_lines(folder) == LINES[:1] + LINES
        assert [read(folder, place) for place in places] == LINES


def test_a_failed_sync_writes_everything_again_on_a_fresh_file(tmp_path: Path) -> None:
    disk = FakeDisk()
    log = open_log(tmp_path, disk.seams())
    append(log, LINES[:1])
    disk.broken = {"sync": 5}
    with pytest.raises(OSError, match="Input/output"):
        append(log, LINES)
    disk.broken = {"truncate": 30}  # the store has become read-only: nothing can be cut either
    with pytest.raises(OSError, match="Read-only"):
        append(log, LINES)
    disk.broken, disk.calls = {}, []
    append(log, LINES)
    log.close()
    assert disk.calls == ["truncate", "write", "sync"]
    assert whole_lines(tmp_path) == LINES[:1] + LINES


def test_a_deleted_segment_is_noticed_and_never_filled_with_zeros(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    append(log, LINES)
    segment_path(tmp_path, 1).unlink()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            append(log, LINES[:2])
    append(log, LINES[:2])
    log.close()
    assert whole_lines(tmp_path) == LINES[:2]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with pytest.raises(RecordError, match=f"has a writer already, process {os.getpid()}"):
        open_log(tmp_path)
    program = (
        "import pathlib, sys; from understudy.record.log import *; SegmentLog(pathlib.Path(sys.argv[1]), disk=Disk())"
    )
    other = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False)
    assert b"Locked" in other.stderr
    log.close()
    open_log(tmp_path).close()


def test_a_forked_child_does_not_keep_the_folder_of_a_dead_writer(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    alive_until_closed, hold = os.pipe()
    writer = os.fork()
    if writer == 0:
        log = open_log(tmp_path)
        append(log, LINES)
        if os.fork() == 0:  # as vLLM forks helpers; it outlives the writer
            os.close(hold)
            os.write(writing, b"%d\n" % os.getpid())
            os.read(alive_until_closed, 1)
            os._exit(0)
        signal.pause()
    helper = int(os.read(reading, 20))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.kill(helper, 0)  # still alive
    open_log(tmp_path).close()
    for fd in (hold, reading, writing, alive_until_closed):
        os.close(fd)


def test_a_folder_that_cannot_be_used_is_a_record_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecordError, match="cannot be written"):
            open_log(folder)
    write(tmp_path / "r", LINES)
    segment_path(tmp_path / "r", 1).unlink()
    segment_path(tmp_path / "r", 1).mkdir()
    with pytest.raises(RecordError, match="cannot be written"):
        open_log(tmp_path / "r")
    segment_path(tmp_path / "r", 1).rmdir()
    open_log(tmp_path / "r").close()  # the failed one has not kept the lock


def test_every_folder_that_is_made_is_private_and_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    for module in (store, recording):
        monkeypatch.setattr(module, "sync_folder", synced.append)
    recording.secret_in(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]  # the last one for the secret's name in it
    SegmentLog(tmp_path / "a" / "c" / "d", disk=Disk()).close()
    assert synced[3:] == [tmp_path / "a", tmp_path / "a" / "c"]
    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
