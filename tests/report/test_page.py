"""The page is one file, tells the verdict first, and shows other people's text as text."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from understudy.report import fetch
from understudy.report.page import MAX_CHARACTERS, MAX_DISAGREEMENTS, report_page
from understudy.report.plot import WIDTH, plot
from understudy.report.summary import ChallengerSummary, Disagreement
from understudy.report.view import report_view

from .conftest import NEW_STATUS

SUMMARY = Callable[..., ChallengerSummary]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)' {{ 7 * 7 }}"
VOID = {"meta", "br", "hr", "img", "input", "link", "rect", "line", "path", "circle"}


class Page(HTMLParser):
    """Tags and text by class; refuses tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or tag))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            self.text.setdefault(name, []).append(data)

    def said(self, name: str) -> str:
        return " ".join("".join(self.text.get(name, [])).split())


def test_every_verdict_stands_as_prominently_as_any_other(new_status: NEW_STATUS, summary: SUMMARY) -> None:
    names = ("equal", "worse", "young")
    page = Page(report_page(new_status(*names), [summary(name) for name in names]))
    assert page.text["word"] == ["GO", "NO-GO", "NOT ENOUGH DATA"]
    tones = [(attrs["class"] or "").split()[1] for _, attrs in page.tags if "verdict" in (attrs.get("class") or "")]
    assert tones == ["go", "no-go", "wait"]
    assert "at most" in page.said("reason")
    assert "at least" in page.said("reason")
    assert "are not enough yet" in page.said("reason")


@pytest.mark.parametrize("name", ["equal", "worse", "young"])
def test_a_page_of_one_challenger(new_status: NEW_STATUS, summary: SUMMARY, name: str) -> None:
    html = report_page(new_status(name), [summary(name)], generated_unix_s=1_700_000_000.0)
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert "2023-11-14 22:13:20 UTC" in page.said("time")
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    for words in ("queue_full", "1,234,567", "66.0 ms", "12,345,678 tokens"):
        assert words in page.said("challenger")


def test_an_empty_page_is_not_enough_data() -> None:
    page = Page(report_page({}, []))
    assert page.said("word") == "NOT ENOUGH DATA"
    assert "No challenger is configured" in page.said("reason")


def test_a_challenger_without_a_verdict_is_not_enough_data() -> None:
    page = Page(report_page({"challengers": [{"name": "new", "verdict": {"verdict": "<b>GO"}}]}, []))
    assert page.said("word") == "NOT ENOUGH DATA"


def test_other_peoples_text_stays_text(new_status: NEW_STATUS, summary: SUMMARY) -> None:
    status = new_status("equal")
    verdict = status["challengers"][0]["verdict"]
    status["champion"] = {"name": EVIL, "model": EVIL}
    status |= {"phase": EVIL, "placement": EVIL}
    status["challengers"][0] |= {"name": EVIL, "model": EVIL, "counts": {"shed": {EVIL: 1}}}
    verdict |= {
        "reason": EVIL,
        "gates": [gate | {"metric": EVIL, "reason": EVIL} for gate in verdict["gates"]],
    }
    page = Page(report_page(status, [summary(EVIL, Disagreement(EVIL, EVIL, "a" + EVIL, "b" + EVIL, 0.5))]))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert " ".join(EVIL.split()) in page.said("prompt text")
    assert "49" not in page.said("prompt text")


def test_nothing_is_fetched_from_anywhere(new_status: NEW_STATUS, summary: SUMMARY) -> None:
    html = report_page(new_status("equal"), [summary("equal")])
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not [attrs for _, attrs in page.tags if "src" in attrs or not (attrs.get("href") or "#").startswith("#")]
    assert "url(" not in html
    assert "@import" not in html
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_disagreements_stand_side_by_side_from_where_they_part(new_status: NEW_STATUS, summary: SUMMARY) -> None:
    one = Disagreement("id-1", None, "Category: refund", "Category: other", 0.5)
    page = Page(report_page(new_status("equal"), [summary("equal", one)]))
    assert page.text["mark"] == ["refund", "other"]
    assert "The prompt was redacted." in page.said("prompt")
    assert "50.0%" in page.said("card disagreement")


def test_long_texts_and_long_lists_are_cut(new_status: NEW_STATUS, summary: SUMMARY) -> None:
    many = [Disagreement(f"id-{index}", "p" * 10**5, "a" * 10**5, "b", 0.0) for index in range(30)]
    html = report_page(new_status("equal"), [summary("equal", *many)])
    assert html.count("card disagreement") == MAX_DISAGREEMENTS
    assert f"{10**5 - MAX_CHARACTERS:,} more characters" in html
    assert len(html) < 200_000


@pytest.mark.parametrize("name", ["equal", "worse", "young"])
def test_the_plot_keeps_left_and_right_in_order(new_status: NEW_STATUS, name: str) -> None:
    for gate in report_view(new_status(name), []).challengers[0].gates:
        drawn = plot(gate)
        assert 0 < drawn.margin_x < drawn.zero_x < WIDTH
        assert 0 < drawn.low_x <= drawn.high_x < WIDTH
        assert drawn.mean_x is not None
        assert drawn.low_x <= drawn.mean_x <= drawn.high_x
        assert (drawn.low_x > drawn.margin_x) == (gate.decision == "GO")
        assert (drawn.high_x < drawn.margin_x) == (gate.decision == "NO-GO")
        assert drawn.zero_x - drawn.margin_x > 10


def test_a_young_interval_is_cut_off_so_that_the_margin_can_be_seen(new_status: NEW_STATUS) -> None:
    gate = report_view(new_status("young"), []).challengers[0].gates[0]
    assert gate.high - gate.low > 1.5
    drawn = plot(gate)
    assert drawn.cut_low
    assert drawn.cut_high
    assert drawn.zero_x - drawn.margin_x > 30


def test_the_page_is_for_its_owner_alone(new_status: NEW_STATUS, summary: SUMMARY, tmp_path: Path) -> None:
    status, quiet = new_status("equal") | {"verdict": {}}, Console(quiet=True)
    assert fetch.show(status, [summary("equal")], out=tmp_path / "page.html", gate=False, console=quiet) == 0
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600
