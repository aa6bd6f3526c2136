"""``understudy exchanges`` put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from understudy.browse.champion import champion_in, decoder_of
from understudy.browse.export import Answer, export
from understudy.browse.listing import listing
from understudy.browse.select import Filters, View, is_called, newest, worst
from understudy.browse.show import shown
from understudy.compare.ranking import number_of
from understudy.errors import ConfigError, RecordError, UnderstudyError
from understudy.record import scan
from understudy.record.recording import names_of

RANKED_BY = "token_agreement"
"""The number that is shown where nobody asked for another."""
EVERY = 100
MAX_SHOWN = 10
LISTED = 20


def run(
    source: str,
    filters: Filters,
    *,
    since: float | None,
    until: float | None,
    worst_by: str | None,
    reverse: bool = False,
    show: str | None,
    export_to: Path | None,
    answer: Answer,
    limit: int | None,
    key: str | None,
    spool: Path | None,
    console: Console,
) -> None:
    """List, show or export.

    Raises:
        ConfigError: ``worst_by`` is no number, or a server was asked for what only its record can tell.
        UnderstudyError: nothing is there, or the server or the record cannot be asked.
    """
    views = watched(scan(source, since=since, until=until, spool=spool), console)
    if source.startswith(("http://", "https://")):
        if show is None or export_to is not None:
            raise ConfigError(f"{source!r}: a server shows one exchange (--show ID); lists come from its record.url")
        found, decode = ask(source, show, key), None
    elif show is not None:
        found, decode = find(views, source, show, spool), decoder_of(champion_in(source, spool))
    if show is not None:
        for view in found:
            console.print(shown(view, list(filters.rows([view])), decode))
        return
    number = RANKED_BY if worst_by is None else number_of(worst_by)
    rows, without = filters.rows(views), Counter[str]()
    if worst_by is not None:
        rows = iter(worst(rows, number, limit or LISTED, reverse=reverse, without=without))
    elif limit is not None or export_to is None:
        rows = iter(newest(rows, limit or LISTED))
    if export_to is None:
        listed = list(rows)
        if not listed:
            ranked = f" and has {number}" if worst_by else ""
            ranked += f"; {not_ranked(number, without)}" if without else ""
            raise RecordError(f"{source}: no exchange is so{ranked}")
        console.print(listing(listed, number))
    else:
        written, left_out = export(rows, export_to, answer)
        console.print(f"{written} exchanges written to {export_to}", markup=False, soft_wrap=True)
        if left_out:
            console.print(f"{left_out} left out: no text of the request or of the answer is recorded", style="yellow")
    if without:
        console.print(not_ranked(number, without), style="yellow")


def not_ranked(number: str, without: Counter[str]) -> str:
    """How many exchanges were left out for want of the number, by how they ended."""
    endings = ", ".join(f"{count} {ending}" for ending, count in without.most_common())
    return f"not ranked, for they have no {number}: {endings} (--state lists them)"


def find(views: Iterator[View], source: str, any_id: str, spool: Path | None) -> list[View]:
    """The exchanges of a record under an id, at most MAX_SHOWN. Raises RecordError: there is none."""
    names = names_of(any_id, source, spool)
    called = (view for view in views if any(is_called(view, name) for name in names))
    found = list(islice(called, MAX_SHOWN))
    called.close()
    if not found:
        raise RecordError(f"{any_id!r}: no exchange of that id is in {source}")
    return found


def ask(url: str, any_id: str, key: str | None) -> list[View]:
    """What a server has recorded under an id. Raises UnderstudyError."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/shadow/exchanges/{any_id}", headers=headers, timeout=60)
    except httpx.HTTPError as fault:
        raise UnderstudyError(f"{url} cannot be asked: {fault}") from fault
    if answer.status_code != 200:
        raise UnderstudyError(f"{url} answers {answer.status_code}: {answer.text[:200]}")
    found: list[View] = answer.json()["exchanges"]
    return found


def watched(views: Iterator[View], console: Console) -> Iterator[View]:
    """The same views, with a count on the terminal while it takes long."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading the record")
        for count, view in enumerate(views, 1):
            if count % EVERY == 0:
                bar.update(task, description=f"reading the record: {count:,} exchanges")
            yield view
