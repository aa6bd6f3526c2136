"""understudy compare."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from understudy.errors import UnderstudyError


@click.command()
@click.option("--champion", help="MODEL or MODEL+ADAPTER (a folder or a name, and a PEFT adapter's folder).")
@click.option("--challenger", "challengers", multiple=True, help="[NAME=]MODEL[+ADAPTER]; give as many as you like.")
@click.option("--prompts", type=click.Path(dir_okay=False), required=True, help="JSONL: see understudy/prompts.py.")
@click.option("--config", type=click.Path(dir_okay=False), help="YAML as for serve; what is given here wins.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the record and the page.")
@click.option("--max-tokens", type=click.IntRange(1), help="For lines that do not say it.")
@click.option("--temperature", type=click.FloatRange(0), help="For lines that do not say it.")
@click.option("--label-pattern", help="Where the label is in an answer, group 1; adds a gate on accuracy.")
@click.option("--engine-args", help="JSON: vLLM's engine arguments, for every model given here.")
@click.option("--placement", type=click.Choice(["shared", "dedicated"]), help="Of the models.")
@click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True, help="Prompts at a time.")
@click.option("--gate", is_flag=True, help="Exit with 0 for GO, 1 for NO-GO, 3 for NOT ENOUGH DATA.")
def command(prompts: str, out: str | None, concurrency: int, gate: bool, **models: Any) -> None:
    """Run challengers against a champion over a file of prompts; the same pipeline and report as live traffic.

    Without --gate the exit code is 0 if every prompt was answered and compared, else 1. Ctrl-C leaves a readable
    record, and the same command with the same --out goes on from there.
    """
    from understudy.compare_run import run

    folder = Path(out) if out else Path("understudy-data") / time.strftime("compare-%Y%m%d-%H%M%S")
    try:
        sys.exit(run(Path(prompts), out=folder, concurrency=concurrency, gate=gate, **models))
    except KeyboardInterrupt:
        raise UnderstudyError("interrupted before anything was compared") from None
