"""The noise floor in the report: both models beside the champion's first answer, over the same exchanges."""

from __future__ import annotations

import math
from dataclasses import replace

from tests.builders import answer, exchange, observation

from understudy.report.floor import FloorFigure
from understudy.report.tally import Tallies
from understudy.report.view import divergence_figures, floor_figures
from understudy.types import Comparison, Ending, Floor, State


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


def test_divergences_are_shown_where_there_are_any() -> None:
    tallies = Tallies()
    tallies.ended(exchange(), "a", ending({"kl_forward": 0.1, "kl_backward": 0.3}, None))
    tallies.ended(exchange(), "a", ending({"kl_forward": 0.2, "kl_backward": 0.5}, None))
    tallies.ended(exchange(), "b", ending({"exact_match": 1.0}, None))
    apart, plain = tallies.summaries({"a": None, "b": None})
    (row,) = divergence_figures(apart)
    assert (row.challenger, row.note) == ("0.15 nats", "0.4 the other way, 2 exchanges")
    assert divergence_figures(plain) == ()
