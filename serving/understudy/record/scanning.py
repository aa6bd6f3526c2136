"""All exchanges of a record, whoever wrote them: the replicas' folders under one URL, merged.

    for view in scan("understudy-data"):
        view["exchange_id"], view["champion"], view["challengers"]["w8a8"]["state"], view["feedback"]

Views are those of reading.py. Nothing here takes a lock or writes, so a server may be writing the same record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from understudy.errors import RecordError
from understudy.record.lines import segments
from understudy.record.reading import RecordReader, given_feedback


def scan(url: str | Path, *, since: float | None = None, until: float | None = None) -> Iterator[dict[str, Any]]:
    """Every exchange of the record at ``url``, replica by replica; within one in the order in which they ended.

    A label counts for an exchange whichever replica it was given to. Memory: reading.py's, and every feedback.

    Args:
        url: as ``record.url`` has it, or the folder of one replica.
        since: only exchanges that arrived at this time (Unix seconds) or later.
        until: only exchanges that arrived before this time.

    Raises:
        RecordError: there is no record, or it cannot be read at all. Damaged records are left out and logged.
    """
    readers = [RecordReader(folder) for folder in replica_folders(url)]
    given = given_feedback(readers)
    for reader in readers:
        for view in reader.iterate(given):
            arrived_unix_s = view["arrived_unix_s"]
            if (since is None or arrived_unix_s >= since) and (until is None or arrived_unix_s < until):
                yield view


def replica_folders(url: str | Path) -> list[Path]:
    """The folders under ``url`` that hold a log, in the order of their names.

    Raises:
        RecordError: there are none.
    """
    root = Path(str(url).removeprefix("file://"))
    try:
        inside = sorted(path for path in root.iterdir() if path.is_dir() and segments(path))
    except OSError as error:
        raise RecordError(f"{url} cannot be read: {error}") from error
    folders = [root] if segments(root) else inside
    if not folders:
        raise RecordError(f"{url} holds no record")
    return folders
