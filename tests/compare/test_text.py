"""Texts beside each other: similarity, chrF, length, tokens, time, cost, refusals."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
from tests.builders import answer, met, observation

from understudy.compare import Comparators, chrf, cost, latency, length, refusal, text, tokens
from understudy.compare.options import CompareSpec
from understudy.errors import ConfigError
from understudy.types import Timings


def pair(theirs: str, mine: str, **options: Any) -> Any:
    return met(observation(answer(1, text=theirs)), observation(answer(1, text=mine), model="b"), **options)


@pytest.mark.parametrize(
    ("theirs", "mine", "similarity"),
    [
        ("", "", 1.0),
        ("", "a", 0.0),
        ("abc", "abc", 1.0),
        ("abcd", "abxd", 0.75),  # 3 of 4 in common: 2 * 3 / 8
        ("kitten", "sitting", 2 * 4 / 13),  # ittn
        ("one two", "two one", 2 * 3 / 7 / 2),  # "two" or "one", and not both, because order counts
        ("a" * 5_000, "a" * 10_000, 2 / 3),  # long, but alike where they overlap: nothing is lost at the limit
    ],
)
def test_similarity(theirs: str, mine: str, similarity: float) -> None:
    values = text.compare(pair(theirs, mine, max_characters=100))
    assert values["text_similarity"] == pytest.approx(similarity)
    assert values["text_match"] == float(theirs == mine)


def test_what_is_beyond_the_limit_counts_as_different() -> None:
    theirs, mine = "x" + "ab" * 100 + "y", "z" + "ab" * 100 + "w"
    assert text.similarity(theirs, mine, 1000) == pytest.approx(200 / 202)
    assert text.similarity(theirs, mine, 101) == pytest.approx(100 / 202)
    assert text.similarity(theirs, theirs, 1) == 1.0


def test_chrf_is_sacrebleus_and_weighs_what_is_left_out() -> None:
    from sacrebleu.metrics.chrf import CHRF

    theirs, mine = "the cat sat on the mat", "the cat sat"
    expected = CHRF().sentence_score(mine, [theirs]).score / 100
    assert chrf.compare(pair(theirs, mine))["chrf"] == pytest.approx(expected)
    assert chrf.compare(pair(mine, theirs))["chrf"] > expected
    assert chrf.compare(pair("", ""))["chrf"] == 1.0


def test_chrf_of_texts_beyond_the_limit_counts_what_is_not_read_as_different() -> None:
    def of(theirs: str, mine: str, limit: int) -> float:
        return float(chrf.compare(pair(theirs, mine, max_characters=limit))["chrf"])

    same = "the cat sat on the mat. " * 20  # 480 characters
    assert of(same + "one", same + "two", 1000) > 0.9  # short enough: sacrebleu's
    assert of(same + "ooo", same + "www", 400) == pytest.approx(480 / 483)  # where they differ, wherever that is
    assert of(same, same + same, 100) == pytest.approx(2 * 480 / 1440)
    a, b = "".join(map(str, range(1000))), "".join(map(str, range(1000, 2000)))
    assert of(a, a[:100] + b, 100) < 0.2
    assert of(same, same, 1) == 1.0


def test_chrf_without_its_package_is_an_error_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chrf, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"compare.use: 'chrf' needs the package sacrebleu: pip install"):
        Comparators(CompareSpec(use=("exact", "chrf")))
    Comparators()  # nobody who does not ask for it is told
    assert importlib.util.find_spec("sacrebleu") is not None


def test_length_and_how_they_ended() -> None:
    champion = observation(answer(1, text="abcd"), answer(1, text="ab", finish_reason="length"))
    challenger = observation(answer(1, text="abc", finish_reason="length"), answer(1, text="", finish_reason="length"))
    assert length.compare(met(champion, challenger)) == {
        "finish_reason_match": 0.5,
        "length_ratio": 0.5,
        "champion_truncated": 0.5,
        "challenger_truncated": 1.0,
        "champion_missing": 0.0,
        "challenger_missing": 0.0,
    }


def test_tokens_and_their_price() -> None:
    prices = {"champion": {"input": 1.0, "output": 2.0}, "b": {"input": 0.5, "output": 8.0}}
    champion, challenger = observation(answer(1, 2, 3)), observation(answer(1), model="b", prompt_token_ids=(1,) * 6)
    both = met(champion, challenger, token_prices=prices)
    assert tokens.compare(both) == {
        "champion_tokens": 3.0,
        "challenger_tokens": 1.0,
        "champion_prompt_tokens": 3.0,
        "challenger_prompt_tokens": 6.0,
        "tokens_ratio": pytest.approx(1 / 3),
    }
    assert cost.compare(both) == {
        "champion_cost_usd": pytest.approx(9e-6),
        "challenger_cost_usd": pytest.approx(11e-6),
        "cost_ratio": pytest.approx(11 / 9),
    }
    assert cost.compare(met(champion, challenger, token_prices={"champion": prices["champion"]})) == {
        "champion_cost_usd": pytest.approx(9e-6)
    }


def test_latency_has_a_first_token_only_where_it_was_seen() -> None:
    champion = observation(answer(1), timings=Timings(1.0, 1.5, 3.0))
    challenger = observation(answer(1), timings=Timings(7.0, None, 8.0))
    assert latency.compare(met(champion, challenger)) == {
        "champion_end_to_end_s": 2.0,
        "challenger_end_to_end_s": 1.0,
        "champion_ttft_s": 0.5,
        "end_to_end_ratio": 0.5,
    }


@pytest.mark.parametrize(
    ("said", "refuses"),
    [
        ("I can't help with that.", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I can\N{RIGHT SINGLE QUOTATION MARK}t share it.", True),
        ("Sure! Here is how.", False),
        ("", False),
        ("Here is the letter. " * 20 + "I cannot help it.", False),  # not how it begins
        ("Nein, das mache ich nicht.", False),
    ],
)
def test_refusals_are_told_by_how_they_begin(said: str, refuses: bool) -> None:
    values = refusal.compare(pair("Sure.", said))
    assert values == {"refusal_match": float(not refuses), "champion_refused": 0.0, "challenger_refused": refuses}


def test_phrases_of_ones_own_are_added() -> None:
    values = refusal.compare(
        pair("Nein, das mache ich nicht.", "I cannot help", refusal_phrases=("Das mache ich nicht",))
    )
    assert values == {"refusal_match": 1.0, "champion_refused": 1.0, "challenger_refused": 1.0}


def test_numbers_are_finite() -> None:
    found = Comparators().compare(pair("", "").exchange, pair("", "").challenger).values
    assert all(math.isfinite(value) for value in found.values())
