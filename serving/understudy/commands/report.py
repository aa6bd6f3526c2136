"""understudy report."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--key", envvar="UNDERSTUDY_SHADOW_KEY", help="The key of /shadow, where the server has one.")
@click.option("--out", type=click.Path(dir_okay=False), help="Also write the report as an HTML page.")
@click.option("--gate", is_flag=True, help="Exit with 0 for GO, 1 for NO-GO, 3 for NOT ENOUGH DATA.")
def command(url: str, key: str | None, out: str | None, gate: bool) -> None:
    """Show the table of a running server at URL."""
    from understudy.report.fetch import show

    sys.exit(show(url, key=key, out=None if out is None else Path(out), gate=gate))
