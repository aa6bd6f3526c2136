"""``understudy report``: the table, the page and the exit code of a verdict, of a running server or of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from understudy.errors import UnderstudyError
from understudy.record.store import open_private
from understudy.report.coverage import Coverage
from understudy.report.floor import FloorFigure
from understudy.report.numbers import NumberFigure
from understudy.report.page import report_page
from understudy.report.summary import ChallengerSummary, Disagreement, Paired
from understudy.report.table import print_report
from understudy.types import DraftCounts

MIN_WIDTH = 100  # columns; below that numbers would be cut off
EXIT_CODES = {"GO": 0, "NO-GO": 1, "NOT ENOUGH DATA": 3}


def show(
    status: Mapping[str, Any], summaries: Sequence[ChallengerSummary], *, out: Path | None, gate: bool, console: Console
) -> int:
    """Print the table; write the page where ``out`` says. Returns the exit code."""
    print_report(status, summaries, console)
    if out is not None:
        with open_private(out) as file:
            file.write(report_page(status, summaries))
    return EXIT_CODES[str(status["verdict"]["verdict"])] if gate else 0


def fetch(url: str, key: str | None = None) -> tuple[dict[str, Any], list[ChallengerSummary]]:
    """Status and figures of the server at ``url``. Raises UnderstudyError."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(f"{url}/shadow/report", params={"format": "json"}, headers=headers, timeout=60)
    except httpx.HTTPError as fault:
        raise UnderstudyError(f"{url} cannot be asked: {fault}") from fault
    if answer.status_code != 200:
        raise UnderstudyError(f"{url}/shadow/report answers {answer.status_code}: {answer.text[:200]}")
    body = answer.json()
    return body["status"], [_summary(raw) for raw in body["summaries"]]


def _summary(raw: Mapping[str, Any]) -> ChallengerSummary:
    disagreements = tuple(Disagreement(**one) for one in raw["disagreements"])
    draft = None if raw.get("draft") is None else DraftCounts(**raw["draft"])
    paired = tuple(Paired(**one) for one in raw.get("paired", ()))
    floor = tuple(_floor(one) for one in raw.get("floor", ()))
    numbers = tuple(NumberFigure(**one) for one in raw.get("numbers", ()))
    coverage = tuple(Coverage(**one) for one in raw.get("coverage", ()))
    read = {
        "coverage": coverage,
        "disagreements": disagreements,
        "paired": paired,
        "floor": floor,
        "numbers": numbers,
        "draft": draft,
    }
    return ChallengerSummary(**{**raw, **read})


def _floor(raw: Mapping[str, Any]) -> FloorFigure:
    """Its excess is computed again: it follows from the means, and older servers do not send it."""
    return FloorFigure(raw["name"], raw["exchanges"], raw["own"], raw["challenger"])
