"""understudy replay."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from understudy.commands.options import spool, unix_s
from understudy.errors import UnderstudyError


@click.command()
@click.option("--record", required=True, help="The record to replay: record.url of the server that wrote it.")
@click.option("--challenger", "challengers", multiple=True, help="[NAME=]MODEL[+ADAPTER]; give as many as you like.")
@click.option("--champion", help="The champion's MODEL, if not the recorded one; only its tokenizer is loaded.")
@click.option("--config", type=click.Path(dir_okay=False), help="YAML as for serve; what is given here wins.")
@click.option("--since", callback=unix_s, help="Only exchanges from then on: 2026-11-24, 2026-11-24T10:00, or 90m ago.")
@click.option("--until", callback=unix_s, help="Only exchanges before then.")
@spool
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the new record and the page.")
@click.option("--label-pattern", help="Where the label is in an answer, group 1; adds a gate on accuracy.")
@click.option("--engine-args", help="JSON: vLLM's engine arguments, for every model given here.")
@click.option("--placement", type=click.Choice(["shared", "dedicated"]), help="Of the models.")
@click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True, help="Exchanges at a time.")
@click.option("--gate", is_flag=True, help="Exit with 0 for GO, 1 for NO-GO, 3 for NOT ENOUGH DATA.")
def command(record: str, out: str | None, **options: Any) -> None:
    """Run new challengers over recorded exchanges, as if they had shadowed them; the same report.

    The exit code is as for compare. Ctrl-C leaves a readable record, and the same command with the same --out goes on.
    """
    from understudy.replay_run import run

    folder = Path(out) if out else Path("understudy-data") / time.strftime("replay-%Y%m%d-%H%M%S")
    try:
        sys.exit(run(record, out=folder, **options))
    except KeyboardInterrupt:
        raise UnderstudyError("interrupted before anything was replayed") from None
