"""The most surprising tokens, with what stood before them."""

from __future__ import annotations

from dataclasses import replace

from tests.builders import answer, exchange, observation

from understudy.compare.surprise import Surprise, surprising
from understudy.types import Score

WHOLE = exchange(
    "x", replace(answer(10, 11, 12, 13), logprobs=(-0.1, -0.2, -0.3, -0.4)), answer(20, 21), prompt_token_ids=(1, 2, 3)
)
CHALLENGER = observation(
    scores=(
        Score((-4.0, -9.0, -0.5, -20.0), (3, 8, 1, 400), (1.0, 2.0, 0.1, 3.0), (50, 51, 12, 53)),
        Score((-6.0, -7.0), (2, 1)),
    )
)


def test_the_worst_come_first_and_a_first_choice_is_no_surprise() -> None:
    found = surprising(WHOLE, CHALLENGER, limit=3)
    assert [(one.answer, one.position, one.logprob) for one in found] == [(0, 3, -20.0), (0, 1, -9.0), (1, 0, -6.0)]
    assert [one.position for one in surprising(WHOLE, CHALLENGER)] == [3, 1, 0, 0]  # all that were surprises


def test_a_surprise_has_everything_that_is_known_about_it() -> None:
    first, _, third = surprising(WHOLE, CHALLENGER, limit=3, pieces=[["the ", "quick ", "brown ", "fax"]])
    assert first == Surprise(0, 3, 13, -20.0, 400, 53, 3.0, -0.4, (1, 2, 3, 10, 11, 12), "fax", "the quick brown ")
    assert third == Surprise(1, 0, 20, -6.0, 2, None, None, None, (1, 2, 3))


def test_in_another_vocabulary_there_is_nothing_to_show() -> None:
    assert surprising(WHOLE, replace(CHALLENGER, rendered="own_template")) == []
