"""understudy sql."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import click

from understudy.commands.options import spool as spool_option


@click.command()
@click.argument("query")
@click.option("--url", default="understudy-data", show_default=True)
@spool_option
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def command(query: str, url: str, spool: Path | None, form: str) -> None:
    """Run a DuckDB QUERY over the record: views records, exchanges, endings, comparisons, feedback, controls.

    \b
    understudy sql "SELECT challenger, state, count(*) FROM endings GROUP BY ALL"
    understudy sql "SELECT challenger, name, avg(value) FROM comparisons GROUP BY ALL ORDER BY ALL"
    """  # noqa: D301  # click's mark for a paragraph that stays as it is
    from understudy.record.sql import query as run

    names, rows = run(url, query, spool)
    if form == "json":
        for row in rows:
            click.echo(json.dumps(dict(zip(names, row, strict=True)), default=str))
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerows([names, *rows])
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(*names)
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row))
        Console().print(table)
