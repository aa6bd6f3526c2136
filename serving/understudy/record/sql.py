"""``understudy sql``: DuckDB over the sealed segments and what is still in the logs, as views.

    records      every record, one row each; the columns of columns.py, and ``writer``
    exchanges    accepted: one row for each sampled exchange, with the champion's figures
    endings      ended: one row for each exchange and challenger, with the challenger's figures and ``comparison``
    comparisons  exchange_id, challenger, name, value: the numbers of ``comparison``, one row each
    feedback     exchange_id, label, name, value, at_unix_s; exchange_id is null where the id is not known
    controls     start, stop, pause, identity, checkpoint, erase, ...

Text and token ids are in ``document``: ``document->>'$.champion.answers[0].text'``. Nothing is written, no lock taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from understudy.errors import RecordError
from understudy.record.columns import damaged_row, row_or_damaged
from understudy.record.lines import is_whole, links_of, record_of, segment_path, segments
from understudy.record.scanning import sources_at
from understudy.record.sealed import arrow_schema, to_table
from understudy.record.sources import Source
from understudy.record.store import LocalStore

ATTEMPTS = 5  # retention may remove a file that was listed
VIEWS = {
    "exchanges": """
        SELECT writer, rollout, exchange_id, request_id, client_request_id, at_unix_s AS arrived_unix_s, endpoint,
               session, tags, challengers, model, outcome, finish_reason, num_answers, num_prompt_tokens,
               num_generated_tokens, ttft_s, end_to_end_s, kv_peak_bytes, kv_byte_s, device_s, usd, tokens_usd, document
        FROM records WHERE kind = 'accepted'""",
    "endings": """
        SELECT writer, rollout, exchange_id, challenger, at_unix_s AS ended_unix_s, state, reason, model, outcome,
               rendered, finish_reason, num_answers, num_generated_tokens, ttft_s, end_to_end_s, kv_peak_bytes,
               kv_byte_s, device_s, usd, tokens_usd, comparison, document
        FROM records WHERE kind = 'ended'""",
    "comparisons": """
        SELECT exchange_id, challenger, entry.key AS name, entry.value AS value
        FROM (SELECT exchange_id, challenger, unnest(map_entries(comparison)) AS entry FROM records
              WHERE kind = 'ended' AND comparison IS NOT NULL)""",
    "feedback": """
        WITH known AS (
            SELECT exchange_id AS id, exchange_id FROM exchanges
            UNION SELECT request_id, exchange_id FROM exchanges
            UNION SELECT client_request_id, exchange_id FROM exchanges)
        SELECT exchange_id, given.id, label, name, value, at_unix_s
        FROM (SELECT id, label, name, value, at_unix_s FROM records WHERE kind = 'feedback') AS given
        LEFT JOIN known ON given.id = known.id""",
    "controls": """
        SELECT writer, rollout, at_unix_s, action, actor, num_lost, document FROM records WHERE kind = 'control'""",
}


def connect(url: str | Path, spool: Path | None = None) -> Any:
    """A DuckDB connection with the views over the record at ``url``.

    Sealed segments are read by the query, column by column; what is in the logs is in memory (a file of the log at
    most, for each writer).

    Raises:
        RecordError: there is no record, or it cannot be read.
        duckdb.IOException: a file was removed, by retention, after it was listed.
    """
    import duckdb

    connection = duckdb.connect()
    parts = []
    for index, source in enumerate(sources_at(url, spool)):
        writer = source.log.name.replace("'", "''")
        tail, sealed = _tail(source)
        connection.register(f"tail_{index}", to_table(tail))
        parts.append(f"SELECT '{writer}' AS writer, * FROM tail_{index}")
        if files := _files(source, sealed):
            parts.append(f"SELECT '{writer}' AS writer, * FROM {_scan(connection, source, files, index)}")
    connection.execute("CREATE VIEW records AS " + " UNION ALL BY NAME ".join(parts))
    for name, query in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {query}")
    return connection


def query(url: str | Path, text: str, spool: Path | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Names of the columns, and the rows of one query.

    Raises:
        RecordError: there is no record, or DuckDB does not take the query; its words are in the message.
    """
    import duckdb

    attempt = 0
    while True:
        attempt += 1
        try:
            with connect(url, spool) as connection:
                done = connection.execute(text)
                return [column[0] for column in done.description], done.fetchall()
        except duckdb.Error as error:
            if attempt == ATTEMPTS or not isinstance(error, duckdb.IOException):
                raise RecordError(f"sql: {error}") from error


def _files(source: Source, sealed: Iterable[int]) -> list[str]:
    paths = (file.path for number in sorted(sealed) for file in source.manifest(number).files)
    present = set(source.store.list("segments"))
    return [path for path in paths if path in present]


def _scan(connection: Any, source: Source, files: list[str], index: int) -> str:
    """What a query can select from: DuckDB's own reader for local files, Arrow's for a store."""
    if isinstance(source.store, LocalStore):
        listed = ", ".join("'" + str(source.store.folder / path).replace("'", "''") + "'" for path in files)
        return f"read_parquet([{listed}], hive_partitioning = false, union_by_name = true)"
    connection.register(f"sealed_{index}", source.store.dataset(files, arrow_schema()))
    return f"sealed_{index}"


def _tail(source: Source) -> tuple[list[dict[str, Any]], set[int]]:
    """The rows of what is in the log alone, and the numbers of the segments that are sealed: together all of it."""
    numbers = segments(source.log)  # before the sealed ones: one may be sealed, and retired, in between
    rows, sealed = [], set(source.sealed())
    for number in numbers:
        if number not in sealed:
            try:
                rows += _rows(source, number)
            except FileNotFoundError:
                sealed.add(number)
    return rows, sealed


def _rows(source: Source, number: int) -> list[dict[str, Any]]:
    rows, offset = [], 0
    with segment_path(source.log, number).open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                rows.append(_row(line) | {"offset": offset})
            offset += len(line)
    return rows


def _row(line: bytes) -> dict[str, Any]:
    links = links_of(line)
    proof = {} if links is None else dict(zip(("n", "sha", "chain"), links, strict=True))
    return (row_or_damaged(record_of(line)) if is_whole(line) else damaged_row(line)) | proof
