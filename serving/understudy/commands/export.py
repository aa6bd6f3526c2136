"""understudy export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from understudy.commands import options


@click.command()
@click.argument("url", default="understudy-data")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write.")
@click.option("--format", "form", type=click.Choice(["chat", "parquet", "label-studio"]), default="chat")
@click.option("--challenger", help="Only this one's answers.")
@click.option(
    "--since", callback=options.unix_s, help="Only exchanges from then on: 2026-11-24, 2026-11-24T10:00, or 90m ago."
)
@click.option("--until", callback=options.unix_s, help="Only exchanges before then.")
@options.spool
def command(url: str, out: Path, form: str, challenger: str | None, **scanned: Any) -> None:
    """Write the exchanges of the record at URL: as chats (JSONL), as Parquet, or as Label Studio tasks.

    For Label Studio, a labelling configuration of two Text fields ($answer_a, $answer_b) and a Choices fits.
    """
    from understudy.record import scan
    from understudy.record.export import export

    done = export(scan(url, **scanned), form, out, challenger)
    click.echo(f"{out}: {done.num_written} written, {done.num_without_text} left out: their text is not in the record")
