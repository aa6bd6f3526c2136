"""The terminal report says what there is to say, and cuts nothing off at 100 columns."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console

from understudy.report.summary import ChallengerSummary
from understudy.report.table import print_report

from .conftest import NEW_STATUS

SUMMARY = Callable[..., ChallengerSummary]


def printed(status: dict[str, Any], summaries: Sequence[ChallengerSummary], *, colour: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=colour, color_system="256" if colour else None)
    print_report(status, summaries, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("name", "verdict"), [("equal", "GO"), ("worse", "NO-GO"), ("young", "NOT ENOUGH DATA")])
def test_the_verdict_comes_first_and_its_reason_under_it(
    new_status: NEW_STATUS, summary: SUMMARY, name: str, verdict: str
) -> None:
    status = new_status(name)
    lines = printed(status, [summary(name)]).splitlines()
    at = next(index for index, line in enumerate(lines) if f"challenger {name}" in line)
    assert lines[at].split("challenger")[0].strip() == verdict
    reason = " ".join(" ".join(lines[at + 1 : at + 3]).split())
    assert status["challengers"][0]["verdict"]["reason"][:60] in reason


def test_no_number_is_cut_off_at_100_columns(new_status: NEW_STATUS, summary: SUMMARY) -> None:
    text = printed(new_status("equal", "worse", "young"), [summary("equal")])
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    numbers = (
        "61.3%",
        "93.4%",
        "41.2 ms",
        "66.0 ms",
        "1,430 ms",
        "1.60x",
        "733.2 s",
        "12,345,678 tokens",
        "-0.213",
        "75.0%",
        "of 20,000; found its way back 28 times of 30",
    )
    for number in (*numbers, "offered 1,234,567", "shed 100 (queue_full 80, deadline 20)", "failed 6"):
        assert number in " ".join(text.split())


def test_gates_show_both_means_and_the_interval(new_status: NEW_STATUS) -> None:
    rows = [line.split() for line in printed(new_status("worse"), []).splitlines()]
    row = next(row for row in rows if row[:1] == ["accuracy"] and "%" in row[1])
    assert row[1:4] == ["100.0%", "0.0%", "-100.0"]
    assert row[-3:] == ["-10.0", "300", "NO-GO"]
    assert next(row for row in rows if row[:2] == ["token", "agreement"] and row[-1] == "advisory")


def test_what_is_unknown_is_a_dash_and_never_zero(new_status: NEW_STATUS) -> None:
    text = printed(new_status("young"), [])
    rows = [" ".join(line.split()) for line in text.splitlines()]
    for row in (
        "TTFT p50 - -",
        "end to end p50 - -",
        "shadow cost -",
        "champion's tokens - logprob under the challenger",
    ):
        assert row in rows


def test_accuracy_is_shown_without_a_gate_on_it() -> None:
    summary = ChallengerSummary("new", champion_accuracy=0.84, challenger_accuracy=0.9999)
    text = printed({}, [summary])
    assert "84.0%" in text
    assert "99.99%" in text
    assert "There is no verdict yet." in text


def test_an_empty_status_is_told(new_status: NEW_STATUS) -> None:
    assert "No challenger is configured" in printed({}, [])


@pytest.mark.parametrize(("name", "code"), [("equal", "42m"), ("worse", "41m"), ("young", "43m")])
def test_verdicts_are_coloured(new_status: NEW_STATUS, name: str, code: str) -> None:
    assert code in printed(new_status(name), [], colour=True)


def test_names_cannot_control_the_terminal(new_status: NEW_STATUS) -> None:
    status = new_status("equal")
    status["challengers"][0] |= {"name": "[red]x[/red]\x1b[2J", "counts": {"shed": {"\x1b]0;y": 1}}}
    text = printed(status, [])
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_several_challengers_have_one_line_each_before_their_blocks(new_status: NEW_STATUS, summary: SUMMARY) -> None:
    lines = printed(new_status("equal", "worse", "young"), [summary("equal"), summary("worse")]).splitlines()
    at = next(index for index, line in enumerate(lines) if "verdict" in line)
    assert at < next(index for index, line in enumerate(lines) if "challenger equal" in line)
    assert "same answer" in lines[at]
    assert "same label" not in lines[at]  # nobody has it
    rows = [line.split() for line in lines[at + 2 : at + 5]]
    assert [row[0] for row in rows] == ["equal", "worse", "young"]
    assert rows[1][1] == "NO-GO"
    assert "61.3%" in rows[0]
    assert "61.3%" not in rows[2]
    assert "verdict" not in " ".join(printed(new_status("equal"), [summary("equal")]).splitlines()[:4])
