"""understudy exchanges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from understudy.commands.options import spool, unix_s


def _tags(_context: Any, parameter: Any, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise click.BadParameter(f"{name!r} must be NAME=VALUE", param=parameter)
    return {name: value for name, _, value in pairs}


@click.command()
@click.argument("source", default="understudy-data")
@click.option("--challenger", help="Only for this challenger.")
@click.option("--state", type=click.Choice(["pending", "compared", "shed", "failed", "expired", "cancelled"]))
@click.option("--reason", help="Why it was shed or failed: too_long, queue_full, engine_dead, ...")
@click.option("--tag", "tags", multiple=True, callback=_tags, help="NAME=VALUE; may be given several times.")
@click.option("--label", help="Only those with this label.")
@click.option("--since", callback=unix_s, help="Only those from then on: 2026-11-24, 2026-11-24T10:00, or 90m ago.")
@click.option("--until", callback=unix_s, help="Only those before then.")
@click.option("--worst", help="Rank by COMPARATOR, COMPARATOR.number or a number, the worst first.")
@click.option(
    "--reverse", is_flag=True, help="With --worst: the best first. Of numbers of your own high ones are best."
)
@click.option("--limit", type=click.IntRange(1), help="How many, 20 if not given; --export alone takes all.")
@click.option("--show", help="One exchange side by side, by any of its ids or the beginning of its own.")
@click.option("--export", "export_to", type=click.Path(dir_okay=False, path_type=Path), help="FILE.jsonl of chats.")
@click.option("--answer", type=click.Choice(["champion", "challenger", "none"]), default="champion", show_default=True,
              help="What ends each chat of --export.")  # fmt: skip
@spool
@click.option("--key", envvar="UNDERSTUDY_SHADOW_KEY", help="The key of /shadow, where SOURCE is a server.")
def command(source: str, worst: str | None, key: str | None, **options: Any) -> None:
    """List, rank, show or export recorded exchanges.

    SOURCE is the record (record.url; it may be one that a server is writing), or a server's URL for --show.
    """
    from understudy.browse.command import run
    from understudy.browse.select import Filters
    from understudy.offline import wide_console

    if options["reverse"] and worst is None:
        raise click.BadOptionUsage("--reverse", "--reverse: goes with --worst")
    names = ("challenger", "state", "reason", "tags", "label")
    filters = Filters(**{name: options.pop(name) for name in names})
    run(source, filters, worst_by=worst, key=key, console=wide_console(120), **options)
