"""The write-ahead log: segment files in a folder, one JSON object a line, appended by one writer.

    FOLDER/lock                     held by the writer (flock), with its process id
    FOLDER/segment-00000001.jsonl   {"crc":"89abcdef","v":1,"kind":...}
    FOLDER/segment-00000002.jsonl   ...

``crc`` is the CRC-32 of the rest of the line after its comma, without the line break, so that every line is plain
JSON for jq, grep or DuckDB and still proves itself. Lines are written in groups with one fsync each. A group that
failed half-way is cut away before anything else is written; so is a line without its end when a folder is opened.
It was never acknowledged. Damage anywhere else is reported with file and offset and never repaired.

This module knows lines, not what is in them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakSet

from understudy.errors import RecordError

logger = logging.getLogger(__name__)

MAX_WRITE_BYTES: Final = 1 << 20  # lines are joined to writes of about this size; larger ones were not faster
_START: Final = b'{"crc":"'
_COVERED: Final = len(_START) + 8 + len(b'",')  # where the part that the CRC covers begins


class Place(NamedTuple):
    """Where a line begins. Later lines have greater places."""

    segment: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Disk:
    """The three calls that fail on a full or broken disk, in one place so that a test can make them fail."""

    write: Callable[[int, memoryview], int] = os.write
    sync: Callable[[int], None] = os.fsync
    truncate: Callable[[int, int], None] = os.ftruncate


def frame(document: bytes) -> bytes:
    """A JSON object (at least one field, no line breaks) as a line of the log."""
    covered = memoryview(document)[1:]
    return b'%b%08x",%b\n' % (_START, zlib.crc32(covered), covered)


def segment_path(folder: Path, segment: int) -> Path:
    """The file of one segment."""
    return folder / f"segment-{segment:08d}.jsonl"


def segments(folder: Path) -> list[int]:
    """The numbers of the segments there are, oldest first."""
    return sorted(int(path.stem.removeprefix("segment-")) for path in folder.glob("segment-*.jsonl"))


def scan(folder: Path, damaged: Callable[[RecordError], None]) -> Iterator[tuple[Place, bytes]]:
    """Every whole line, oldest first, while a writer may be appending. One line at a time is in memory.

    Args:
        folder: of the log.
        damaged: told of every line that is not what was written, with its file and offset.

    Raises:
        RecordError: a segment cannot be opened or read at all.
    """
    numbers = segments(folder)
    try:
        for number in numbers:
            offset = 0
            with segment_path(folder, number).open("rb", buffering=MAX_WRITE_BYTES) as file:
                for line in file:
                    place, offset = Place(number, offset), offset + len(line)
                    if is_whole(line):
                        yield place, line
                    elif line.endswith(b"\n") or number != numbers[-1]:
                        damaged(damage(folder, place, "the line is not what was written"))
                    # else: it is being written at this moment, or its writer died and nobody opened the folder since
    except OSError as error:
        raise RecordError(f"{folder} cannot be read: {error}") from error


def read(folder: Path, place: Place) -> bytes:
    """The line at one place.

    Raises:
        RecordError: it is not what was written, or is gone.
    """
    try:
        with segment_path(folder, place.segment).open("rb") as file:
            file.seek(place.offset_bytes)
            line = file.readline()
    except OSError as error:
        raise RecordError(f"{segment_path(folder, place.segment)}: {error}") from error
    if not is_whole(line):
        raise damage(folder, place, "the line is not what was written")
    return line


class FolderLock:
    """The right to write in a folder, until close() or the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            RecordError: another writer has it.
            OSError: the store does not allow it.
        """
        path = folder / "lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(self._fd, b"%-20d\n" % os.getpid(), 0)  # always as long: a full disk has room for it
        except BlockingIOError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise RecordError(f"{folder} has a writer already, process {holder or 'unknown'}") from error
        except BaseException:
            os.close(self._fd)
            raise
        _held.add(self)

    def close(self) -> None:
        """Give it back. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


# A child forked while the lock is held would keep it beyond the death of the writer, and the replica's successor
# could not start: the child closes its copy at once. A program that is exec'ed does not inherit it (O_CLOEXEC).
_held: WeakSet[FolderLock] = WeakSet()
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in list(_held)])


class SegmentLog:
    """The one writer of a folder. Not thread-safe. Files are 0600, a folder made here is 0700."""

    def __init__(self, folder: Path, *, max_segment_bytes: int = 64 << 20, disk: Disk | None = None) -> None:
        """Take the folder and cut the half-written line that a dead writer may have left.

        ``num_cut_bytes`` says how long that was. Needs no free space if the folder was used before.

        Raises:
            RecordError: another writer has the folder, or the store does not allow it.
        """
        self._folder, self._max_segment_bytes, self._disk = folder, max_segment_bytes, disk or Disk()
        self._fd, self._segment, self._size_bytes, self.num_cut_bytes = -1, 1, 0, 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FolderLock(folder)
        except OSError as error:
            raise RecordError(f"{folder} cannot be written: {error}") from error
        try:
            if folder.stat().st_mode & 0o077:
                logger.warning("%s can be opened by others; its files cannot", folder)
            if numbers := segments(folder):
                self._segment = numbers[-1]
                self._size_bytes, self.num_cut_bytes = _cut_tail(segment_path(folder, self._segment))
        except OSError as error:
            self._lock.close()
            raise RecordError(f"{folder} cannot be written: {error}") from error

    def append(self, lines: Sequence[bytes]) -> list[Place]:
        """All lines on disk, or none of them: what a failed call left is cut away by the next one.

        Raises:
            OSError: the disk is full, read-only, gone, ... Call again with the same lines when it may be better.
        """
        if self._size_bytes >= self._max_segment_bytes:
            self._close_file()
            self._segment, self._size_bytes = self._segment + 1, 0
        if self._fd < 0:
            self._open_file()
        try:
            for piece in _pieces(lines):
                self._write(piece)
            self._disk.sync(self._fd)
            if os.fstat(self._fd).st_nlink == 0:
                raise FileNotFoundError(f"{segment_path(self._folder, self._segment)} was deleted")
        except BaseException:
            # After a failed fsync nobody knows which pages are on disk: the file is opened afresh, cut and rewritten.
            self._close_file()
            raise
        places = []
        for line in lines:
            places.append(Place(self._segment, self._size_bytes))
            self._size_bytes += len(line)
        return places

    def close(self) -> None:
        """Close the file and give the folder back. Idempotent."""
        try:
            self._close_file()
        finally:
            self._lock.close()

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._disk.write(self._fd, rest) :]

    def _open_file(self) -> None:
        path = segment_path(self._folder, self._segment)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < self._size_bytes:
                logger.error("%s was deleted or cut by somebody else; writing goes on in the next segment", path)
                self._segment, self._size_bytes = self._segment + 1, 0
                raise FileNotFoundError(f"{path} is shorter than what was written")
            self._disk.truncate(fd, self._size_bytes)
            _sync_folder(self._folder)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_whole(line: bytes) -> bool:
    """Whether a line is what was written."""
    if not (line.startswith(_START) and line.endswith(b"\n") and len(line) > _COVERED):
        return False
    crc = b"%08x" % zlib.crc32(memoryview(line)[_COVERED:-1])
    return line[len(_START) : _COVERED] == crc + b'",'


def damage(folder: Path, place: Place, what: object) -> RecordError:
    """The error that names a place."""
    return RecordError(f"{segment_path(folder, place.segment)} at byte {place.offset_bytes}: {what}")


def _pieces(lines: Sequence[bytes]) -> Iterator[bytes]:
    piece: list[bytes] = []
    num_bytes = 0
    for line in lines:
        piece.append(line)
        num_bytes += len(line)
        if num_bytes >= MAX_WRITE_BYTES:
            yield b"".join(piece)
            piece, num_bytes = [], 0
    if piece:
        yield b"".join(piece)


def _cut_tail(path: Path) -> tuple[int, int]:
    """The size of the whole lines, and how many bytes after them were cut away."""
    with path.open("r+b") as file:
        end = size_bytes = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - MAX_WRITE_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size_bytes:
            logger.warning("%s: cut %d bytes of a half-written record at its end", path, size_bytes - end)
            file.truncate(end)
            os.fsync(file.fileno())
    return end, size_bytes - end


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
