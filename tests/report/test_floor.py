"""The noise floor in the report: both models beside the champion's first answer, over the same exchanges."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

from tests.builders import answer, exchange, observation

from understudy.compare import COMPARATORS, load
from understudy.report.fetch import _summary
from understudy.report.floor import FloorFigure
from understudy.report.numbers import FRACTIONS
from understudy.report.summary import ChallengerSummary
from understudy.report.tally import Tallies
from understudy.report.view import divergence_figures, floor_figures
from understudy.types import Comparison, Ending, Floor, State

NUMBERS_THERE_ARE = {number for name in COMPARATORS for number in load(name).NAMES}


def ending(challenger: dict[str, float], own: dict[str, float] | None) -> Ending:
    floor = None if own is None else Floor(comparison=Comparison(own))
    return Ending(State.COMPARED, challenger=observation(answer(1)), comparison=Comparison(challenger), floor=floor)


def test_means_are_over_exchanges_that_have_both() -> None:
    tallies = Tallies()
    whole = exchange()
    tallies.ended(whole, "a", ending({"exact_match": 0.0}, None))  # not chosen
    tallies.ended(whole, "a", ending({"exact_match": 0.0, "cost": 3.0}, {"exact_match": 1.0}))
    tallies.ended(whole, "a", ending({"exact_match": 1.0}, {"exact_match": 1.0}))
    failed = replace(ending({"exact_match": 0.0}, None), floor=Floor(reason="late"))
    tallies.ended(whole, "a", failed)
    (summary,) = tallies.summaries({"a": None})
    assert summary.floor == (FloorFigure("exact_match", 2, 1.0, 0.5),)
    assert summary.exact_match_fraction == 0.25


def test_what_is_shown_is_the_excess() -> None:
    rows = floor_figures((FloorFigure("exact_match", 40, 0.9, 0.7), FloorFigure("champion_logprob", 40, -1.0, -1.5)))
    assert [(row.name, row.champion, row.challenger) for row in rows] == [
        ("same answer again", "90.0%", "70.0%"),
        ("champion's tokens read", "-1.000 nats", "-1.500 nats"),
    ]
    assert rows[0].note == "+20.0 points above the noise floor, 40 exchanges"
    assert rows[1].note == f"perplexity {math.exp(0.5):.4g}x its own, 40 exchanges"


def test_every_fraction_with_a_title_has_a_row() -> None:
    names = {f"challenger_{name}" if f"challenger_{name}" in NUMBERS_THERE_ARE else name for name in FRACTIONS}
    rows = floor_figures([FloorFigure(name, 40, 0.75, 0.5) for name in ("exact_match", "token_agreement", *names)])
    titles = ["same answer", "token agreement", *FRACTIONS.values()]
    assert [row.name for row in rows] == [f"{title} again" for title in titles]


def test_of_twins_the_champions_second_answer_is_beside_the_challengers() -> None:
    """What is worse when high is above the floor when it is higher; the champion's first answer is in no row."""
    whole, tallies = exchange(), Tallies()
    own = {"champion_truncated": 0.0, "challenger_truncated": 0.25, "champion_tool_valid": 1.0}
    mine = own | {"challenger_truncated": 0.5, "challenger_tool_valid": 0.5}
    tallies.ended(whole, "a", ending(mine, own | {"challenger_tool_valid": 0.75}))
    (summary,) = tallies.summaries({"a": None})
    assert [(row.name, row.champion, row.challenger, row.note) for row in floor_figures(summary.floor)] == [
        ("tool calls valid again", "75.0%", "50.0%", "+25.0 points above the noise floor, 1 exchanges"),
        ("cut off at the limit again", "25.0%", "50.0%", "+25.0 points above the noise floor, 1 exchanges"),
    ]


def test_the_excess_is_in_the_json_and_is_read_with_and_without() -> None:
    summary = ChallengerSummary("a", floor=(FloorFigure("exact_match", 40, 0.75, 0.5),))
    sent = json.loads(json.dumps(asdict(summary)))
    assert sent["floor"] == [{"name": "exact_match", "exchanges": 40, "own": 0.75, "challenger": 0.5, "excess": -0.25}]
    assert _summary(sent) == summary
    del sent["floor"][0]["excess"]  # an older server
    assert _summary(sent) == summary


def test_divergences_are_shown_where_there_are_any() -> None:
    tallies = Tallies()
    tallies.ended(exchange(), "a", ending({"kl_forward": 0.1, "kl_backward": 0.3}, None))
    tallies.ended(exchange(), "a", ending({"kl_forward": 0.2, "kl_backward": 0.5}, None))
    tallies.ended(exchange(), "b", ending({"exact_match": 1.0}, None))
    apart, plain = tallies.summaries({"a": None, "b": None})
    (row,) = divergence_figures(apart)
    assert (row.challenger, row.note) == ("0.15 nats", "0.4 the other way, 2 exchanges")
    assert divergence_figures(plain) == ()
