"""understudy erase."""

from __future__ import annotations

from pathlib import Path

import click

from understudy.commands import options


@click.command()
@click.argument("url", default="understudy-data")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Everything with this tag.")
@click.option("--session", "sessions", multiple=True, help="Everything of this session; short for --tag session=...")
@click.option("--spool", default="understudy-spool", show_default=True, help="Where the logs are, if not in URL.")
@options.by
def command(url: str, tags: tuple[str, ...], sessions: tuple[str, ...], spool: str, by: str) -> None:
    """Erase exchanges of a user or session from the record at URL; the audit chain stays verifiable.

    Where a server writes the record it does this itself within a minute or two; where none does, it is done now.
    """
    from understudy.config import RecordSpec
    from understudy.record.care import erase_now

    if not tags and not sessions:
        raise click.UsageError("give --tag NAME=VALUE or --session S")
    spec = RecordSpec(url=str(Path(url)) if "://" not in url else url, spool=spool)
    for line in erase_now(spec, [*tags, *(f"session={session}" for session in sessions)], by):
        click.echo(line)
