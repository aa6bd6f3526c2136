"""Lines of the log and where they are. This module knows lines, not what is in them.

    FOLDER/segment-00000001.jsonl   {"sha":"9f8e...","chain":"77ab...","n":0,"v":2,"kind":...}
    FOLDER/segment-00000002.jsonl   ...

``sha`` is the SHA-256 of the record: of ``{`` and the rest of the line from ``"n"`` on, without the line break. So
every line is plain JSON for jq, grep or DuckDB and proves itself, and a record can be taken out later without
breaking the chain: ``chain`` is SHA-256(the chain before || sha), over the raw 32 bytes of both, and starts from 32
zeros. ``n`` counts the records of the writer from 0, without a gap. Lines of version 1 have ``crc`` instead, the
CRC-32 of what comes after its comma. A line that is not what was written is reported with file and offset.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from understudy.errors import RecordError

GENESIS: Final = bytes(32)
_START: Final = b'{"sha":"'
_CHAIN: Final = b'","chain":"'
_SHA_AT: Final = slice(len(_START), len(_START) + 64)
_CHAIN_AT: Final = slice(_SHA_AT.stop + len(_CHAIN), _SHA_AT.stop + len(_CHAIN) + 64)
_COVERED: Final = _CHAIN_AT.stop + len(b'",')  # where the record begins, but for its brace
_BLANK: Final = _START + b"0" * 64 + _CHAIN + b"0" * 64 + b'",'
_START_1: Final = b'{"crc":"'
_COVERED_1: Final = len(_START_1) + 8 + len(b'",')
_READ_BYTES: Final = 1 << 20
_N: Final = re.compile(rb'"n":(\d{1,18}),')


class Place(NamedTuple):
    """Where a line begins. Later lines have greater places."""

    segment: int
    offset_bytes: int


@dataclass(slots=True)
class Chain:
    """Where a writer's chain stands: ``n`` records so far, ``head`` over all of them."""

    n: int = 0
    head: bytes = GENESIS

    def add(self, sha: bytes) -> None:
        """One more record."""
        self.head = sha256(self.head + sha).digest()
        self.n += 1


def append_line(buffer: bytearray, append_document: Callable[[bytearray], None], chain: Chain) -> None:
    """Append a line of the log to ``buffer``, in place: copying cost a quarter of the writer's time.

    Args:
        buffer: is as it was, if anything is raised.
        append_document: appends a JSON object, with at least one field and no line breaks.
        chain: goes on by this record, unless anything is raised.
    """
    start = len(buffer)
    buffer += _BLANK
    buffer += b'"n":%d' % chain.n
    brace = len(buffer)
    try:
        append_document(buffer)
    except BaseException:
        del buffer[start:]
        raise
    buffer[brace] = ord(",")  # the object goes on behind "n"
    hashed = sha256(b"{")
    with memoryview(buffer) as whole, whole[start + _COVERED :] as covered:
        hashed.update(covered)
    chain.add(hashed.digest())
    buffer[start + _SHA_AT.start : start + _SHA_AT.stop] = hashed.hexdigest().encode()
    buffer[start + _CHAIN_AT.start : start + _CHAIN_AT.stop] = chain.head.hex().encode()
    buffer += b"\n"


def frame(document: bytes, chain: Chain | None = None) -> bytes:
    """A JSON object as a line of the log; see append_line."""
    buffer = bytearray()
    append_line(buffer, lambda line: line.extend(document), chain or Chain())
    return bytes(buffer)


def record_of(line: bytes) -> bytes:
    """The JSON object of a line, without what proves it."""
    return b"{" + line[_COVERED_1 if line.startswith(_START_1) else _COVERED : -1]


def links_of(line: bytes) -> tuple[int, bytes, bytes] | None:
    """``n``, ``sha`` and ``chain`` of a line as it says; None where it has no chain (version 1, or damage)."""
    found = _N.match(line, _COVERED)
    if found is None or not line.startswith(_START):
        return None
    try:
        return int(found[1]), bytes.fromhex(line[_SHA_AT].decode()), bytes.fromhex(line[_CHAIN_AT].decode())
    except ValueError:
        return None


def segment_path(folder: Path, segment: int) -> Path:
    """The file of one segment."""
    return folder / f"segment-{segment:08d}.jsonl"


def segments(folder: Path) -> list[int]:
    """The numbers of the segments there are, oldest first."""
    numbers = (path.stem.removeprefix("segment-") for path in folder.glob("segment-*.jsonl"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def scan(folder: Path, damaged: Callable[[RecordError], None]) -> Iterator[tuple[Place, bytes]]:
    """Every whole line of the log's files, oldest first; see scan_segment."""
    numbers = segments(folder)
    for number in numbers:
        yield from scan_segment(folder, number, damaged, is_last=number == numbers[-1])


def scan_segment(
    folder: Path, number: int, damaged: Callable[[RecordError], None], *, is_last: bool
) -> Iterator[tuple[Place, bytes]]:
    """Every whole line of one file, while a writer may be appending. One line at a time is in memory.

    Args:
        folder: of the log.
        number: of the segment.
        damaged: told of every line that is not what was written, with its file and offset.
        is_last: whether a line without its end may be one that is being written just now.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: it cannot be opened or read.
    """
    offset = 0
    try:
        with segment_path(folder, number).open("rb", buffering=_READ_BYTES) as file:
            for line in file:
                place, offset = Place(number, offset), offset + len(line)
                if is_whole(line):
                    yield place, line
                elif line.endswith(b"\n") or not is_last:
                    damaged(damage(folder, place, "the line is not what was written"))
                # else: it is being written, or its writer died and nobody has opened the folder since
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"{folder} cannot be read: {error}") from error


def read(folder: Path, place: Place) -> bytes:
    """The line at one place.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: it is not what was written.
    """
    try:
        with segment_path(folder, place.segment).open("rb") as file:
            file.seek(place.offset_bytes)
            line = file.readline()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"{segment_path(folder, place.segment)}: {error}") from error
    if not is_whole(line):
        raise damage(folder, place, "the line is not what was written")
    return line


def is_whole(line: bytes) -> bool:
    """Whether a line is what was written. Not whether it is in its place: that is what the chain is for."""
    if not line.endswith(b"\n"):
        return False
    if line.startswith(_START_1):
        crc = b"%08x" % zlib.crc32(memoryview(line)[_COVERED_1:-1])
        return len(line) > _COVERED_1 and line[len(_START_1) : _COVERED_1] == crc + b'",'
    if not (line.startswith(_START) and len(line) > _COVERED + 1 and line[_SHA_AT.stop : _CHAIN_AT.start] == _CHAIN):
        return False
    hashed = sha256(b"{")
    hashed.update(memoryview(line)[_COVERED:-1])
    return line[_SHA_AT] == hashed.hexdigest().encode() and line[_CHAIN_AT.stop : _COVERED] == b'",'


def damage(folder: Path, place: Place, what: object) -> RecordError:
    """The error that names a place."""
    return RecordError(f"{segment_path(folder, place.segment)} at byte {place.offset_bytes}: {what}")
