"""understudy demo."""

from __future__ import annotations

import sys
from pathlib import Path

import click

DEMO_FOLDER = Path("~/.cache/understudy/demo")


@click.command()
@click.option("--models", type=click.Path(file_okay=False), default=None, help="Where the demo models are kept.")
@click.option("--tickets", default=240, show_default=True, help="How many held-out tickets to send.")
@click.option("--port", default=0, help="TCP port; 0 takes a free one.")
@click.option("--out", type=click.Path(file_okay=False), default="understudy-data/demo", show_default=True)
def command(models: str | None, tickets: int, port: int, out: str) -> None:
    """Make small models, serve them, send tickets, feed the true labels back, and show the verdicts."""
    from understudy.demo.run import run

    folder = Path(models) if models else DEMO_FOLDER.expanduser()
    sys.exit(run(folder, num_tickets=tickets, port=port, out=Path(out)))
