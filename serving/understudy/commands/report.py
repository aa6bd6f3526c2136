"""understudy report."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from understudy.commands.options import spool


@click.command()
@click.argument("source", default="http://127.0.0.1:8000")
@click.option("--key", envvar="UNDERSTUDY_SHADOW_KEY", help="The key of /shadow, where SOURCE is a server.")
@click.option("--rollout", help="Where SOURCE is a record: which one, by its id; the last one if not given.")
@spool
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report as an HTML page.")
@click.option(
    "--gate",
    is_flag=True,
    help="Exit with 0 for GO, 1 for NO-GO, 3 for NOT ENOUGH DATA and for a GO over a damaged record.",
)
def command(
    source: str, key: str | None, rollout: str | None, spool: Path | None, out: Path | None, gate: bool
) -> None:
    """Show the table of SOURCE: a running server's URL, or a record.

    Of a record (record.url) everything is judged together, whichever replica met it and was given its label.
    """
    from understudy.offline import wide_console
    from understudy.report.fetch import EXIT_CODES, fetch, show

    console = wide_console()
    if source.startswith(("http://", "https://")):
        if rollout is not None or spool is not None:
            raise click.UsageError(f"--rollout and --spool: SOURCE {source!r} must be a record, and is a server")
        status, summaries = fetch(source, key)
        sys.exit(show(status, summaries, out=out, gate=gate, console=console))
    from understudy.browse.command import watched
    from understudy.recorded import is_whole, judged, said_of

    status, summaries = judged(source, spool=spool, rollout=rollout, watch=lambda views: watched(views, console))
    code = show(status, summaries, out=out, gate=gate, console=console)
    for sentence in said_of(status):
        console.print(sentence, style="yellow", markup=False, soft_wrap=True)
    sys.exit(code if code or is_whole(status) or not gate else EXIT_CODES["NOT ENOUGH DATA"])
