"""What the comparators said, as rows of the report."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from tests.builders import answer, exchange, observation

from understudy.compare import COMPARATORS, Comparators, load
from understudy.report.fetch import _summary
from understudy.report.numbers import FRACTIONS, MAX_NAMES, NUMBERS, NumberFigure, NumberFigures, number_figures
from understudy.report.tally import Tallies
from understudy.report.view import report_view
from understudy.types import Comparison, Ending, Outcome, State


def test_each_mean_is_over_the_exchanges_that_have_the_number() -> None:
    figures = NumberFigures()
    figures.add({"json_match": 1.0, "chrf": 0.5})
    figures.add({"json_match": 0.0})
    assert figures.figures() == (NumberFigure("json_match", 2, 0.5), NumberFigure("chrf", 1, 0.5))


def test_names_without_end_take_no_memory_without_end() -> None:
    figures = NumberFigures()
    for number in range(1000):
        figures.add({f"custom_{number}": 1.0})
    assert len(figures.figures()) == MAX_NAMES


def test_twins_are_one_row_and_what_nobody_said_has_none() -> None:
    given = [("champion_refused", 0.25), ("challenger_refused", 0.5), ("text_similarity", 0.9), ("custom_tone", 3.25)]
    given += [("challenger_tool_valid", 1.0), ("champion_cost_usd", 2e-6), ("challenger_cost_usd", 1e-6)]
    rows = number_figures([NumberFigure(name, 1200, mean) for name, mean in given])
    assert [(row.name, row.champion, row.challenger) for row in rows] == [
        ("text similarity", "", "90.0%"),
        ("tool calls valid", "-", "100.0%"),  # the champion called none
        ("refused", "25.0%", "50.0%"),
        ("USD an exchange", "2e-06", "1e-06"),
        ("tone", "", "3.25"),
    ]
    assert {row.note for row in rows} == {"mean over 1,200 exchanges"}
    (row,) = number_figures([NumberFigure("chrf", 1200, 0.5)], missing=1034)
    assert row.note == "mean over 1,200 exchanges; 1,034 unanswered"


def test_beside_a_mean_stands_how_many_the_challenger_owes() -> None:
    """What failed, expired or was shed is in no mean; what the user cancelled, or was no exchange, is nobody's debt."""
    tallies, given = Tallies(), exchange("x", answer(1))
    mine = observation(answer(1), model="b")
    tallies.ended(given, "b", Ending(State.COMPARED, challenger=mine, comparison=Comparison({"chrf": 1.0})))
    for state, reason in (
        (State.FAILED, "engine_dead"), (State.EXPIRED, None), (State.SHED, "queue_full"),
        (State.SHED, "beam_search"), (State.CANCELLED, None),
    ):  # fmt: skip
        tallies.ended(given, "b", Ending(state, reason))
    tallies.ended(replace(given, champion=observation(outcome=Outcome.FAILED)), "b", Ending(State.FAILED, "x"))
    (summary,) = tallies.summaries({"b": 0.0})
    assert (summary.compared, summary.missing) == (1, 3)
    (challenger,) = report_view({}, [summary]).challengers
    (figure,) = [each for each in challenger.figures if each.name == "chrF"]
    assert figure.note == "mean over 1 exchanges; 3 unanswered"


def test_every_titled_number_is_some_comparators() -> None:
    names = {number for name in COMPARATORS for number in load(name).NAMES}
    for title in (*FRACTIONS, *NUMBERS):
        assert title in names or f"challenger_{title}" in names


def test_from_the_comparators_to_the_report_and_through_json() -> None:
    """The table that ``understudy report URL`` prints is made of what a server sends as JSON."""
    tallies, compare = Tallies(), Comparators()
    given, mine = exchange("x", answer(1, text="[1]")), observation(answer(2, text="[2]"), model="b")
    comparison: Any = compare.compare(given, mine)
    tallies.ended(given, "b", Ending(State.COMPARED, challenger=mine, comparison=comparison))
    tallies.ended(given, "b", Ending(State.COMPARED, challenger=mine, comparison=Comparison({"json_match": 1.0})))
    (summary,) = tallies.summaries({"b": 0.0})
    (challenger,) = report_view({}, [_summary(json.loads(json.dumps(asdict(summary))))]).challengers
    rows = {figure.name: figure for figure in challenger.figures}
    assert (rows["same JSON"].challenger, rows["same JSON"].note) == ("50.0%", "mean over 2 exchanges")
    assert rows["tokens an answer"].champion == "1"
