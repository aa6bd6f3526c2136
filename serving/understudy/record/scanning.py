"""All exchanges of a record, whoever wrote them: the replicas' folders under one URL, merged.

    for view in scan("understudy-data"):
        view["exchange_id"], view["champion"], view["challengers"]["w8a8"]["state"], view["feedback"]

Views are those of reading.py. Nothing here takes a lock or writes, so a server may be writing the same record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from understudy.errors import RecordError
from understudy.record.lines import segments
from understudy.record.manifest import FOLDER
from understudy.record.reading import RecordReader, given_feedback
from understudy.record.sources import Source
from understudy.record.store import is_local, store_at

NO_LOG = Path("/nonexistent")


def scan(
    url: str | Path, *, since: float | None = None, until: float | None = None, spool: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Every exchange of the record at ``url``, replica by replica; within one in the order in which they ended.

    A label counts for an exchange whichever replica it was given to. Memory: reading.py's, and every feedback.

    Args:
        url: as ``record.url`` has it, or the folder of one replica.
        since: only exchanges that arrived at this time (Unix seconds) or later.
        until: only exchanges that arrived before this time.
        spool: as in sources_at.

    Raises:
        RecordError: there is no record, or it cannot be read at all. Damaged records are left out and logged.
    """
    readers = [RecordReader(source) for source in sources_at(url, spool)]
    for view in merged(readers):
        arrived_unix_s = view["arrived_unix_s"]
        if (since is None or arrived_unix_s >= since) and (until is None or arrived_unix_s < until):
            yield view


def merged(readers: Sequence[RecordReader]) -> Iterator[dict[str, Any]]:
    """The same of all these readers' exchanges; what is damaged, each of them counts."""
    given = given_feedback(readers)
    for reader in readers:
        yield from reader.iterate(given)


def sources_at(url: str | Path, spool: Path | None = None) -> list[Source]:
    """The writers of the record at ``url``, in the order of their names.

    Args:
        url: as ``record.url`` has it, or the folder of one replica.
        spool: where the logs are, if not in ``url`` itself (``record.spool``, for object stores). Without it only
            what is sealed is seen.

    Raises:
        RecordError: there are none.
    """
    if is_local(str(url)):
        root = Path(str(url).removeprefix("file://"))
        try:
            folders = [root] if _is_record(root) else sorted(each for each in root.iterdir() if _is_record(each))
        except OSError as error:
            raise RecordError(f"{url} cannot be read: {error}") from error
        found = [Source.at(folder) for folder in folders]
    else:
        store, log = store_at(url), spool or NO_LOG
        try:
            names = {path.partition("/")[0] for path in store.list() if f"/{FOLDER}/" in path}
        except OSError as error:
            raise RecordError(f"{url} cannot be read: {error}") from error
        if spool is not None and spool.is_dir():
            names |= {path.name for path in spool.iterdir() if segments(path)}
        found = [Source(log / name, store.inside(name)) for name in sorted(names)]
    if not found:
        raise RecordError(f"{url} holds no record")
    return found


def _is_record(folder: Path) -> bool:
    return folder.is_dir() and (bool(segments(folder)) or (folder / FOLDER).is_dir())
