"""Latency and cost in the report: the same exchanges for both sides, and no figure that was not measured."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from rich.console import Console
from tests.builders import answer, exchange, observation

from understudy.report.cost import assumption, cost_figures
from understudy.report.fetch import _summary
from understudy.report.page import report_page
from understudy.report.paired import FIGURES, MAX_PAIRS, PairedFigures
from understudy.report.summary import ChallengerSummary, Paired
from understudy.report.table import print_report
from understudy.report.tally import Tally
from understudy.report.view import report_view
from understudy.types import Comparison, DraftCounts, Ending, Exchange, Measured, Observation, State


def measured(prefill_s: float = 0.1, **fields: Any) -> Measured:
    return Measured(**{"queue_s": 0.0, "prefill_s": prefill_s, "decode_s": 1.0} | fields)


def pair(number: int, theirs: Measured, mine: Measured) -> tuple[Exchange, Observation]:
    one = exchange(f"x-{number}", answer(*range(11)), measured=theirs)
    return one, observation(answer(*range(11)), model="rival", measured=mine)


def test_medians_and_p95_are_of_the_pairs_that_both_measured() -> None:
    figures = PairedFigures()
    for number in range(1, 101):
        figures.add(*pair(number, measured(number / 100, batch_size=4.0), measured(number / 50, batch_size=1.0)))
    figures.add(*pair(0, measured(99.0), Measured()))  # the challenger keeps no statistics: not a pair
    by_name = {one.name: one for one in figures.figures()}
    assert by_name["TTFT"].pairs == 100
    assert by_name["TTFT"].champion_p50 == pytest.approx(0.505)
    assert by_name["TTFT"].challenger_p50 == pytest.approx(1.01)
    assert by_name["TTFT"].challenger_p95 == pytest.approx(1.901)
    assert by_name["decode speed"].champion_p50 == pytest.approx(10.0)
    assert (by_name["batch size"].champion_p50, by_name["batch size"].challenger_p50) == (4.0, 1.0)
    assert "prompt in cache" not in by_name


def test_a_drafted_answer_says_nothing_of_speed() -> None:
    figures = PairedFigures()
    one, mine = pair(1, measured(), measured())
    figures.add(one, replace(mine, draft=DraftCounts(9, 9, 0, 0)))
    assert {figure.name for figure in figures.figures()} == {"queue", "prefill", "TTFT"}


def test_memory_is_bounded_and_the_newest_count() -> None:
    figures = PairedFigures()
    one = pair(0, measured(1.0), measured(1.0))
    new = pair(0, measured(2.0), measured(2.0))
    for _ in range(MAX_PAIRS):
        figures.add(*one)
    for _ in range(MAX_PAIRS):
        figures.add(*new)
    ttft = next(figure for figure in figures.figures() if figure.name == "TTFT")
    assert (ttft.pairs, ttft.champion_p50) == (MAX_PAIRS, 2.0)


def test_the_report_shows_the_times_of_both_sides_and_the_streams_gaps() -> None:
    tally = Tally("rival")
    one, mine = pair(1, measured(0.25, cached_prompt_tokens=3, gaps=((-30, 9),)), measured(0.5, cached_prompt_tokens=0))
    tally.add(one, Ending(State.COMPARED, challenger=mine, comparison=Comparison({})))
    summary = _summary(json.loads(json.dumps(asdict(tally.summary(1.0)))))  # over the wire and back
    assert summary == tally.summary(1.0)
    (view,) = report_view({}, [summary]).challengers
    rows = {figure.name: figure for figure in view.figures}
    ttft = rows["engine TTFT p50"]
    assert (ttft.champion, ttft.challenger) == ("250 ms", "500 ms")
    assert ttft.note == "2.00x; p95 250 ms, 500 ms; 1 pairs"
    assert (rows["engine prompt in cache p50"].champion, rows["engine prompt in cache p50"].challenger) == (
        "100.0%",
        "0.0%",
    )
    assert rows["stream gap p50"].champion == "60.1 ms"


def cost(**fields: float | None) -> dict[str, Any]:
    names = ("device_s_per_answer", "joules_per_answer", "usd_per_answer", "usd_per_million_input_tokens")
    names += ("usd_per_million_output_tokens", "usd_per_day")
    return dict.fromkeys(names) | fields


def meter(theirs: dict[str, Any], mine: dict[str, Any], promoted: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "models": {
            "champ": {"role": "champion", "cost": theirs},
            "rival": {"role": "challenger", "cost": mine, "promoted": promoted},
        }
    }


def test_cost_rows_are_there_for_what_was_measured_and_for_nothing_else() -> None:
    found = cost_figures(meter(cost(device_s_per_answer=0.5), cost(device_s_per_answer=0.25), None), "rival")
    assert [(row.name, row.champion, row.challenger) for row in found] == [
        ("device time an answer", "500.0 ms", "250.0 ms")
    ]
    assert cost_figures({}, "rival") == ()


def test_a_promotion_says_what_it_saves_and_what_it_assumes() -> None:
    promoted = {
        "device_s_per_day": 4000.0,
        "usd_per_day": 4.6,
        "saved_usd_per_day": 4.4,
        "saved_device_fraction": 0.5,
        "assumption": "as many answers",
    }
    theirs, mine = cost(usd_per_day=9.0), cost()
    row = cost_figures(meter(theirs, mine, promoted), "rival")[-1]
    assert (row.name, row.challenger) == ("if promoted", "$4.60 a day")
    assert row.note == "50% less device time, saves $4.40 a day"
    assert assumption(meter(theirs, mine, promoted), "rival") == "If promoted: as many answers."
    assert assumption(meter(theirs, mine, None), "rival") == assumption({}, "rival") == ""
    without_prices = promoted | {"usd_per_day": None, "saved_usd_per_day": None, "saved_device_fraction": -0.5}
    row = cost_figures(meter(theirs, mine, without_prices), "rival")[-1]
    assert row.challenger == "4,000 s a day"
    assert row.note == "50% more device time"


def test_the_table_with_every_figure_fits_100_columns_and_the_page_has_the_assumption() -> None:
    promoted = {
        "device_s_per_day": 123_456.0,
        "usd_per_day": 12_345.67,
        "saved_usd_per_day": -12_345.67,
        "saved_device_fraction": -0.5,
        "assumption": "as many answers as the champion gives, " * 5,
    }
    dear = cost(**dict.fromkeys(cost(), 12_345.67))
    status = {"champion": {"name": "champ"}, "meter": meter(dear, dear, promoted)}
    high = 12_345.6
    units = [figure for figure in FIGURES if figure[1] != "fraction"]
    paired = tuple(Paired(name, unit, 10_000, high, high, high, high) for name, unit in units)
    summary = ChallengerSummary("rival", paired=paired, stream_gap_p50_ms=1234.5, stream_gap_p95_ms=1234.5)
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(status, [summary], console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for shown in ("engine decode speed p50", "USD per M output tokens", "if promoted", "12,345.6/s", "$12,345.6700"):
        assert shown in text
    assert "10,000 pairs" in text
    assert "If promoted: as many answers" in " ".join(text.split())
    assert "If promoted: as many answers" in report_page(status, [summary])
