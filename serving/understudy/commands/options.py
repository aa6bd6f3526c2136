"""Options that several subcommands take."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import click

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])(?:\s+ago)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


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
