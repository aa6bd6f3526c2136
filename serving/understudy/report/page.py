"""The report as one HTML page in one file: no script, no font, no image, nothing fetched from anywhere.

Prompts and answers are other people's text. The template escapes everything, and the page's own content
security policy forbids scripts, should something ever slip through.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from understudy.report.figure import percent
from understudy.report.plot import WIDTH, plot
from understudy.report.summary import ChallengerSummary, Disagreement
from understudy.report.view import report_view

MAX_DISAGREEMENTS = 10
MAX_CHARACTERS = 4000
"""Of each text; the rest is in the record."""


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two answers; ``same`` is what both begin with, the rest is each one's own."""

    exchange_id: str
    prompt: str | None
    same: str
    champion: str
    challenger: str
    agreement: str


def report_page(
    status: Mapping[str, Any],
    summaries: Sequence[ChallengerSummary],
    *,
    generated_unix_s: float | None = None,
) -> str:
    """The whole page, for ``GET /shadow/report`` and for a file.

    Args:
        status: as ``Server.status`` gives it.
        summaries: one per challenger; those that are missing leave dashes.
        generated_unix_s: the time to print, now if not given.
    """
    generated = datetime.fromtimestamp(time.time() if generated_unix_s is None else generated_unix_s, UTC)
    return _template().render(
        report=report_view(status, summaries),
        generated=generated.isoformat(timespec="seconds"),
        generated_text=f"{generated:%Y-%m-%d %H:%M:%S} UTC",
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"plot": plot, "plot_width": WIDTH, "side_by_side": side_by_side}
    return environment.get_template("page.html")


def side_by_side(disagreements: Sequence[Disagreement]) -> list[SideBySide]:
    """The worst ones, cut to a readable length."""
    return [_laid_out(one) for one in disagreements[:MAX_DISAGREEMENTS]]


def _laid_out(one: Disagreement) -> SideBySide:
    length = 0
    for here, there in zip(one.champion_text, one.challenger_text, strict=False):
        if here != there:
            break
        length += 1
    return SideBySide(
        exchange_id=one.exchange_id,
        prompt=None if one.prompt is None else _cut(one.prompt),
        same=_tail(one.champion_text[:length]),
        champion=_cut(one.champion_text[length:]),
        challenger=_cut(one.challenger_text[length:]),
        agreement=percent(one.token_agreement),
    )


def _cut(text: str) -> str:
    more = len(text) - MAX_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_CHARACTERS]} … {more:,} more characters"


def _tail(text: str) -> str:
    more = len(text) - MAX_CHARACTERS
    return text if more <= 0 else f"{more:,} characters … {text[-MAX_CHARACTERS:]}"
