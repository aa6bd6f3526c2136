"""The command line: a group over the table in commands/.

Exit codes: 0 all went well (for ``report --gate``: GO), 1 it did not (NO-GO), 2 usage, 3 NOT ENOUGH DATA.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from understudy import __version__
from understudy.commands import COMMANDS
from understudy.errors import ConfigError, UnderstudyError


class Commands(click.Group):
    """Imports a subcommand when it is asked for. An unknown one is click's usage error."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """In the order of the alphabet."""
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        found: click.Command = import_module(COMMANDS[name]).command
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Serve LLM traffic with a challenger that shadows the champion."""


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
