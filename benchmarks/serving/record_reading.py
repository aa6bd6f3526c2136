"""How fast a record is sealed, recovered and queried: the second half of bench_record.py."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.serving.record_events import make_events, open_keeper, timed
from understudy.record import Accepted, Ended, Event, RecordKeeper, RecordReader
from understudy.record.lines import segments
from understudy.record.manifest import Manifest, write_manifest
from understudy.record.seal import seal
from understudy.record.sealed import parquet_writer
from understudy.record.sources import Source


def measure_sealing(folder: Path, num_exchanges: int) -> dict[str, float]:
    """A folder that measure_reading() has left: how fast it is sealed, and how large it is then."""
    num_log_bytes = size_bytes(folder)
    source = Source.at(folder)
    seal_s = timed(lambda: seal(source, "bench", include_newest=True))
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    view_s = timed(lambda: sum(1 for _ in RecordReader(source).iterate()))
    return {
        "seal_mb_per_s": num_log_bytes / seal_s / 1e6,
        "sealed_bytes_per_exchange": num_bytes / num_exchanges,
        "log_bytes_per_exchange": num_log_bytes / num_exchanges,
        "iterate_exchanges_per_s": num_exchanges / view_s,
    }


def measure_recovery(folder: Path, events: Sequence[Event], num_mb: int) -> dict[str, float]:
    """Open a log of this size, none of it sealed, of which every tenth exchange was left unfinished."""
    keeper = open_keeper(folder)

    number = 0
    while size_bytes(folder) < num_mb * 10**6:
        for event in events:
            if number % 20 != 19:
                keeper.append(renamed(event, f"{number // 2:032x}"))
            number += 1
        asyncio.run(keeper.flush())
    keeper.close()
    num_bytes = size_bytes(folder)
    opened: list[RecordKeeper] = []
    open_s = timed(lambda: opened.append(open_keeper(folder)))
    opened[0].close()
    recovery = opened[0].recovery
    return {
        "num_mb": num_bytes / 1e6,
        "num_files": len(segments(folder)),
        "num_records": recovery.num_records,
        "num_unfinished": len(recovery.unfinished),
        "open_s": open_s,
        "mb_per_s": num_bytes / open_s / 1e6,
    }


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def renamed(event: Event, id: str) -> Event:
    if isinstance(event, Accepted):
        return replace(event, exchange=replace(event.exchange, exchange_id=id, request_id=f"chatcmpl-{id}"))
    assert isinstance(event, Ended)
    return replace(event, exchange_id=id)


QUERIES = {
    "states": "SELECT challenger, state, count(*) FROM endings GROUP BY ALL",
    "ttft": "SELECT quantile_cont(ttft_s, [0.5, 0.99]), sum(num_generated_tokens) FROM exchanges",
    "sessions": "SELECT session, count(*) AS n FROM exchanges GROUP BY ALL ORDER BY n DESC LIMIT 10",
    "comparison": "SELECT avg(value) FROM comparisons WHERE name = 'number_3'",
    "one": "SELECT * FROM exchanges WHERE exchange_id = '5' || repeat('0', 31)",
}


def measure_query(folder: Path, num_exchanges: int) -> dict[str, Any]:
    """Each query in a process of its own, with nothing of the files in the page cache."""
    num_each = min(10_000, num_exchanges)
    keeper = open_keeper(folder)
    for event in make_events(num_each, prompt_tokens=16, output_tokens=16):
        keeper.append(event)
    keeper.close(120)
    source = Source.at(folder)
    seal(source, "bench", include_newest=True)
    for number in range(1, num_exchanges // num_each):
        copy_segment(source, number + 1000)
    paths = sorted(folder.rglob("*.parquet"))
    seconds: dict[str, float] = {}
    for name, query in QUERIES.items():
        for path in paths:
            forget(path)
        code = f"from understudy.record.sql import query; print(len(query({str(folder)!r}, {query!r})[1]))"
        command = [sys.executable, "-c", code]
        seconds[name] = timed(lambda command=command: subprocess.run(command, check=True, capture_output=True))  # type: ignore[misc]
    empty_s = timed(lambda: subprocess.run([sys.executable, "-c", "import duckdb, pyarrow.parquet"], check=True))
    return {
        "num_exchanges": num_each * (num_exchanges // num_each),
        "num_files": len(paths),
        "num_mb": sum(path.stat().st_size for path in paths) / 1e6,
        "seconds": seconds,
        "of_which_imports_s": empty_s,
    }


def copy_segment(source: Source, number: int) -> None:
    """The first segment once more, with ids of its own. Not a segment that an audit would accept."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    manifest: Manifest = source.manifest(1)
    files = []
    for file in manifest.files:
        table = pq.ParquetFile(source.log / file.path).read()
        for name in ("exchange_id", "request_id"):
            ids = pc.binary_join_element_wise(table[name], pa.scalar(str(number)), pa.scalar("-"))
            table = table.set_column(table.column_names.index(name), name, ids)
        path = file.path.replace("00000001", f"{number:08d}")
        with parquet_writer(source.log / path) as writer:
            writer.write_table(table, row_group_size=512)
        files.append(replace(file, path=path))
    write_manifest(source.store, replace(manifest, segment=number, files=tuple(files)))


def forget(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
