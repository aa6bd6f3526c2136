"""Lines of the log and where they are. This module knows lines, not what is in them.

    FOLDER/segment-00000001.jsonl   {"crc":"89abcdef","v":1,"kind":...}
    FOLDER/segment-00000002.jsonl   ...

``crc`` is the CRC-32 of the rest of the line after its comma, without the line break: every line is plain
JSON for jq, grep or DuckDB and still proves itself. A line that is not what was written is reported with file
and offset.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from understudy.errors import RecordError

_START: Final = b'{"crc":"'
_COVERED: Final = len(_START) + 8 + len(b'",')  # where the part that the CRC covers begins
_READ_BYTES: Final = 1 << 20


class Place(NamedTuple):
    """Where a line begins. Later lines have greater places."""

    segment: int
    offset_bytes: int


def append_line(buffer: bytearray, append_document: Callable[[bytearray], None]) -> None:
    """Append a line of the log to ``buffer``, in place: copying cost a quarter of the writer's time.

    Args:
        buffer: is as it was, if anything is raised.
        append_document: appends a JSON object, with at least one field and no line breaks.
    """
    start = len(buffer)
    buffer += _START + b'00000000"'
    brace = len(buffer)
    try:
        append_document(buffer)
    except BaseException:
        del buffer[start:]
        raise
    buffer[brace] = ord(",")  # the object goes on behind "crc"
    with memoryview(buffer) as whole, whole[brace + 1 :] as covered:
        crc = zlib.crc32(covered)
    buffer[brace - 9 : brace - 1] = b"%08x" % crc
    buffer += b"\n"


def frame(document: bytes) -> bytes:
    """A JSON object as a line of the log; see append_line."""
    buffer = bytearray()
    append_line(buffer, lambda line: line.extend(document))
    return bytes(buffer)


def segment_path(folder: Path, segment: int) -> Path:
    """The file of one segment."""
    return folder / f"segment-{segment:08d}.jsonl"


def segments(folder: Path) -> list[int]:
    """The numbers of the segments there are, oldest first."""
    numbers = (path.stem.removeprefix("segment-") for path in folder.glob("segment-*.jsonl"))
    return sorted(int(number) for number in numbers if number.isdecimal())


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
            with segment_path(folder, number).open("rb", buffering=_READ_BYTES) as file:
                for line in file:
                    place, offset = Place(number, offset), offset + len(line)
                    if is_whole(line):
                        yield place, line
                    elif line.endswith(b"\n") or number != numbers[-1]:
                        damaged(damage(folder, place, "the line is not what was written"))
                    # else: it is being written, or its writer died and nobody has opened the folder since
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


def is_whole(line: bytes) -> bool:
    """Whether a line is what was written."""
    if not (line.startswith(_START) and line.endswith(b"\n") and len(line) > _COVERED):
        return False
    crc = b"%08x" % zlib.crc32(memoryview(line)[_COVERED:-1])
    return line[len(_START) : _COVERED] == crc + b'",'


def damage(folder: Path, place: Place, what: object) -> RecordError:
    """The error that names a place."""
    return RecordError(f"{segment_path(folder, place.segment)} at byte {place.offset_bytes}: {what}")
