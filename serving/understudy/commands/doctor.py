"""understudy doctor."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@click.option("--port", default=8000, show_default=True, help="The port that a server would listen on.")
def command(config: str | None, port: int) -> None:
    """Say what is here, what CONFIG would use, and what is wrong. Exits with 1 where something is."""
    from understudy.doctor import examine, show
    from understudy.finding import State

    findings = examine(config, port)
    show(findings, click.echo)
    sys.exit(any(finding.state is State.WRONG for finding in findings))
