"""The write-ahead log: segment files in a folder, appended by one writer.

Lines (lines.py) are written in groups with one fsync each. A group that failed half-way is cut away before
anything else is written; so is a line without its end when a folder is opened: neither was ever acknowledged.
Damage anywhere else is left as it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from understudy.errors import RecordError
from understudy.record.lines import Chain, Place, links_of, segment_path, segments
from understudy.record.lock import FolderLock
from understudy.record.store import make_folders, sync_folder

logger = logging.getLogger(__name__)

MAX_SEGMENT_BYTES: Final = 64 << 20
READ_BYTES: Final = 1 << 20
GENESIS_CHAIN: Final = Chain()


@dataclass(frozen=True, slots=True)
class Disk:
    """The three calls that fail on a full or broken disk, in one place so that a test can make them fail."""

    write: Callable[[int, memoryview], int] = os.write
    sync: Callable[[int], None] = os.fsync
    truncate: Callable[[int, int], None] = os.ftruncate


class SegmentLog:
    """The one writer of a folder. Not thread-safe. Files are 0600, a folder made here is 0700."""

    def __init__(
        self,
        folder: Path,
        *,
        max_segment_bytes: int = MAX_SEGMENT_BYTES,
        disk: Disk,
        sealed: tuple[int, Chain] = (0, GENESIS_CHAIN),
    ) -> None:
        """Take the folder and cut the half-written line that a dead writer may have left.

        ``num_cut_bytes`` says how long that was, ``chain`` where the chain stands after what is left; who makes
        lines goes on with it. Needs no free space if the folder was used before. ``sealed`` is the newest sealed
        segment, behind which a log without files begins.

        Raises:
            RecordError: another writer has the folder, or the store does not allow it.
        """
        self._folder, self._max_segment_bytes, self._disk = folder, max_segment_bytes, disk
        self._fd, self._segment, self._size_bytes, self.num_cut_bytes = -1, sealed[0] + 1, 0, 0
        self.chain = replace(sealed[1])
        self.is_file_complete = False
        """Set it, and the next append() begins a new file."""
        self._has_leftover = False
        try:
            make_folders(folder)
            self._lock = FolderLock(folder)
        except OSError as error:
            raise RecordError(f"{folder} cannot be written: {error}") from error
        try:
            if folder.stat().st_mode & 0o077:
                logger.warning("%s can be opened by others; its files cannot", folder)
            if numbers := [number for number in segments(folder) if number > sealed[0]]:
                self._segment = numbers[-1]
                path = segment_path(folder, self._segment)
                self._size_bytes, self.num_cut_bytes = _cut_tail(path, disk.sync)
                self.chain = _last_chain(folder, numbers) or self.chain
        except OSError as error:
            self._lock.close()
            raise RecordError(f"{folder} cannot be written: {error}") from error

    def append(self, lines: bytes | bytearray, starts: Sequence[int]) -> list[Place]:
        """All lines on disk, or none of them: what a failed call left is cut away by the next one.

        Args:
            lines: one after the other.
            starts: the offset of each.

        Raises:
            OSError: the disk is full, read-only, gone, ... Call again with the same lines, later.
        """
        if self._size_bytes >= self._max_segment_bytes or (self.is_file_complete and self._size_bytes):
            self.cut()
            self._close_file()
            self._segment, self._size_bytes = self._segment + 1, 0
        self.is_file_complete = False
        if self._fd < 0:
            self._open_file()
        try:
            self._write(lines)
            self._disk.sync(self._fd)
            if os.fstat(self._fd).st_nlink == 0:
                raise FileNotFoundError(f"{segment_path(self._folder, self._segment)} was deleted")
        except BaseException:
            # After a failed fsync nobody knows which pages are on disk. The file is opened afresh, cut and
            # written again.
            self._has_leftover = True
            self._close_file()
            raise
        self._has_leftover = False
        places = [Place(self._segment, self._size_bytes + start) for start in starts]
        self._size_bytes += len(lines)
        return places

    def cut(self) -> None:
        """Cut away now what a failed append() has left, and not with the next one. Raises OSError."""
        if self._has_leftover:
            self._open_file()
            try:
                self._disk.sync(self._fd)
            except BaseException:
                self._close_file()
                raise
            self._has_leftover = False

    def close(self) -> None:
        """Close the file and give the folder back. Idempotent."""
        try:
            with suppress(OSError):  # else whoever opens it next believes what was told to have failed
                self.cut()
            self._close_file()
        finally:
            self._lock.close()

    def _write(self, lines: bytes | bytearray) -> None:
        written = 0
        with memoryview(lines) as whole:
            while written < len(lines):
                with whole[written:] as rest:
                    written += self._disk.write(self._fd, rest)

    def _open_file(self) -> None:
        path = segment_path(self._folder, self._segment)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < self._size_bytes:
                logger.error("%s was deleted or cut; writing goes on in the next segment", path)
                self._segment, self._size_bytes = self._segment + 1, 0
                raise FileNotFoundError(f"{path} is shorter than what was written")
            self._disk.truncate(fd, self._size_bytes)
            sync_folder(self._folder)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _cut_tail(path: Path, sync: Callable[[int], None]) -> tuple[int, int]:
    """The size of the whole lines, all on disk now, and how many bytes after them were cut away."""
    with path.open("r+b") as file:
        end = size_bytes = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - READ_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size_bytes:
            logger.warning("%s: cut %d bytes of a half-written record at its end", path, size_bytes - end)
            file.truncate(end)
        sync(file.fileno())  # what a killed writer left in the page cache will be believed from now on
    return end, size_bytes - end


def _last_chain(folder: Path, numbers: Sequence[int]) -> Chain | None:
    """Where the chain stands after the last line of the newest file that has any; None where none has."""
    for number in reversed(numbers):
        if (line := _last_line(segment_path(folder, number))) is not None:
            links = links_of(line)
            return None if links is None else Chain(links[0] + 1, links[2])
    return None


def _last_line(path: Path) -> bytes | None:
    with path.open("rb") as file:
        start = end = file.seek(0, os.SEEK_END)
        while start:
            start = max(0, start - READ_BYTES)
            file.seek(start)
            found = file.read(end - 1 - start).rfind(b"\n")
            if found >= 0 or not start:
                file.seek(start + found + 1)
                return file.readline()
    return None
