"""The report in a terminal: a block per challenger, verdict first. Fits 100 columns and cuts nothing off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from understudy.report.figure import DASH
from understudy.report.summary import ChallengerSummary
from understudy.report.view import ChallengerView, GateView, ReportView, report_view

OVERVIEW = ("accuracy", "same label", "same answer", "text similarity", "champion's tokens", "end to end p50")
"""Figures and gates of the overview, where any challenger has them."""
COLOURS = {
    "GO": "bold white on green",
    "NO-GO": "bold white on red",
    "NOT ENOUGH DATA": "bold black on yellow",
}


def report_table(status: Mapping[str, Any], summaries: Sequence[ChallengerSummary]) -> RenderableType:
    """Everything a person asks first, for ``console.print``."""
    view = report_view(status, summaries)
    parts: list[RenderableType] = [_head(view)]
    if not view.challengers:
        parts.append(Text("No challenger is configured, so there is nothing to judge."))
    if len(view.challengers) > 1:
        parts += ["", _overview(view.challengers)]
    for challenger in view.challengers:
        parts += ["", *_block(challenger)]
    return Group(*parts)


def print_report(
    status: Mapping[str, Any], summaries: Sequence[ChallengerSummary], console: Console | None = None
) -> None:
    """Print it to the terminal."""
    (console or Console()).print(report_table(status, summaries))


def _head(view: ReportView) -> Text:
    model = f" ({_plain(view.model)})" if view.model else ""
    return Text.assemble(
        ("champion ", "dim"),
        (_plain(view.champion), "bold"),
        model,
        ("   placement ", "dim"),
        _plain(view.placement),
        ("   phase ", "dim"),
        _plain(view.phase),
    )


def _overview(challengers: Sequence[ChallengerView]) -> Table:
    """One line for each of several challengers, so that five variants can be told apart at a glance."""
    figures = [{figure.name: figure.challenger for figure in challenger.figures} for challenger in challengers]
    for challenger, mine in zip(challengers, figures, strict=True):
        mine |= {gate.measure: gate.challenger for gate in challenger.gates}
    shown = [name for name in OVERVIEW if any(mine.get(name, DASH) != DASH for mine in figures)]
    table = _table("challenger", "verdict", *shown)
    for challenger, mine in zip(challengers, figures, strict=True):
        verdict = Text(challenger.verdict, COLOURS[challenger.verdict])
        table.add_row(Text(_plain(challenger.name)), verdict, *(Text(mine.get(name, DASH)) for name in shown))
    return table


def _block(challenger: ChallengerView) -> list[RenderableType]:
    title = Text.assemble((f" {challenger.verdict} ", COLOURS[challenger.verdict]), ("  challenger ", "dim"))
    title.append(_plain(challenger.name), "bold")
    if challenger.model:
        title.append(f" ({_plain(challenger.model)})")
    parts: list[RenderableType] = [title, Padding(Text(_plain(challenger.reason)), (0, 0, 0, 1))]
    if challenger.gates:
        parts.append(_gates(challenger.gates))
    parts.append(_figures(challenger))
    if challenger.assumption:
        parts.append(Padding(Text(_plain(challenger.assumption), "dim"), (0, 0, 0, 1)))
    return [*parts, _counts(challenger)]


def _gates(gates: Sequence[GateView]) -> Table:
    table = _table("gate", "champion", "challenger", "difference", "interval", "margin", "units", "decision")
    for gate in gates:
        numbers = (gate.champion, gate.challenger, gate.difference, gate.interval, gate.margin, gate.units)
        colour = "dim" if gate.advisory else {"GO": "green", "NO-GO": "red"}.get(gate.decision, "yellow")
        decision = "advisory" if gate.advisory else gate.decision
        table.add_row(Text(_plain(gate.measure)), *map(Text, numbers), Text(_plain(decision), colour))
    return table


def _figures(challenger: ChallengerView) -> Table:
    table = _table("figure", "champion", "challenger", "")
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False  # a long note takes a second line, so that no number is cut off
    for figure in challenger.figures:
        shown = (figure.name, figure.champion, figure.challenger, figure.note)  # a tenant names itself
        table.add_row(*(Text(_plain(each)) for each in shown))
    return table


def _counts(challenger: ChallengerView) -> Padding:
    said = []
    for count in challenger.counts:
        why = ", ".join(f"{_plain(reason.name)} {reason.exchanges}" for reason in count.reasons)
        said.append(f"{count.name} {count.exchanges}" + (f" ({why})" if why else ""))
    return Padding(Text.assemble(("exchanges: ", "dim"), ", ".join(said)), (0, 0, 0, 1))


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", padding=(0, 1))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index > 0)
    return table


def _plain(text: str) -> str:
    """Names and reasons may come from outside: no control sequence reaches the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
