"""Options that several subcommands take."""

from __future__ import annotations

import getpass
import os
import re
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

spool = click.option(
    "--spool",
    type=click.Path(file_okay=False, path_type=Path),
    help="record.spool, where the record is in an object store; without it only what is sealed is seen.",
)
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])(?:\s+ago)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def by(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--by NAME``: who does it, for the record; who says nothing is the user of this machine."""
    return click.option("--by", default=this_user, help="Who does this, for the record.  [default: USER@HOST]")(command)


def this_user() -> str:
    """``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def headers(key: str | None, by: str) -> dict[bytes, bytes]:
    """Of a request to /shadow."""
    let_in = {} if key is None else {b"authorization": f"Bearer {key}".encode()}
    return let_in | {b"x-understudy-actor": by.encode()}


def unix_s(_context: Any, parameter: Any, given: str | None) -> float | None:
    """Unix seconds from a date, a time (local unless it says its zone) or ``90m ago``. A click callback."""
    if given is None:
        return None
    ago = _AGO.fullmatch(given.strip())
    if ago:
        return time.time() - float(ago[1]) * _SECONDS[ago[2]]
    try:
        return datetime.fromisoformat(given.strip()).astimezone().timestamp()
    except ValueError:
        rule = "must be a time such as 2026-11-24, 2026-11-24T10:00, 2026-11-24T10:00+01:00 or 90m ago"
        raise click.BadParameter(f"{given!r} {rule}", param=parameter) from None
