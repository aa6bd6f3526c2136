"""The command line. Heavy imports happen inside the commands, so that ``--help`` answers at once.

Exit codes: 0 all went well (for ``report --gate``: GO), 1 it did not (NO-GO), 2 usage, 3 NOT ENOUGH DATA.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from understudy import __version__
from understudy.errors import ConfigError, UnderstudyError

DEMO_FOLDER = Path("~/.cache/understudy/demo")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Serve LLM traffic with a challenger that shadows the champion."""


@cli.command()
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--port", default=8000, show_default=True, help="TCP port of the server.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def serve(config: str, port: int, host: str) -> None:
    """Serve the champion of CONFIG (YAML) with its challengers in the shadow, until Ctrl-C or SIGTERM."""
    from understudy.config import read_yaml
    from understudy.launch import serve_forever

    serve_forever(read_yaml(config), host=host, port=port)


@cli.command()
@click.option("--models", type=click.Path(file_okay=False), default=None, help="Where the demo models are kept.")
@click.option("--tickets", default=240, show_default=True, help="How many held-out tickets to send.")
@click.option("--port", default=0, help="TCP port; 0 takes a free one.")
@click.option("--out", type=click.Path(file_okay=False), default="understudy-data/demo", show_default=True)
def demo(models: str | None, tickets: int, port: int, out: str) -> None:
    """Make small models, serve them, send tickets, feed the true labels back, and show the verdicts."""
    from understudy.demo.run import run

    folder = Path(models) if models else DEMO_FOLDER.expanduser()
    sys.exit(run(folder, num_tickets=tickets, port=port, out=Path(out)))


@cli.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--key", envvar="UNDERSTUDY_SHADOW_KEY", help="The key of /shadow, where the server has one.")
@click.option("--out", type=click.Path(dir_okay=False), help="Also write the report as an HTML page.")
@click.option("--gate", is_flag=True, help="Exit with 0 for GO, 1 for NO-GO, 3 for NOT ENOUGH DATA.")
def report(url: str, key: str | None, out: str | None, gate: bool) -> None:
    """Show the table of a running server at URL."""
    from understudy.report.fetch import show

    sys.exit(show(url, key=key, out=None if out is None else Path(out), gate=gate))


def main() -> None:
    """Entry point: an UnderstudyError is a message and not a traceback."""
    try:
        cli()
    except ConfigError as fault:
        click.echo(f"understudy: configuration: {fault}", err=True)
        sys.exit(2)
    except UnderstudyError as fault:
        click.echo(f"understudy: {fault}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
