"""The comparators: each one's numbers, and the contract that all in the table keep."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from tests.builders import answer, met, observation

from understudy.compare import COMPARATORS, Comparators, agreement, exact, likelihood
from understudy.compare.options import DEFAULTS
from understudy.compare.pairs import MISSING, answer_pairs
from understudy.compare.ranking import badness
from understudy.types import Comparison, Divergence, Observation, Score

OTHER_TOKENIZER = {"rendered": "own_template"}


def scored(*scores: Score, **fields: Any) -> Observation:
    """A challenger that read the champion's answers and gave none."""
    return observation(model="b", scores=scores, **fields)


def score(*ranks: int, logprob: float = -0.5) -> Score:
    return Score((logprob,) * len(ranks), ranks)


def compare(champion: Observation, challenger: Observation, **more: Any) -> Comparison:
    """What the three on tokens give."""
    pair = met(champion, challenger, **({"use": ("exact", "agreement", "likelihood")} | more))
    return Comparators(pair.options).compare(pair.exchange, challenger)


PAIRS = {
    "same": (observation(answer(1, 2)), observation(answer(1, 2))),
    "different": (observation(answer(1, 2, 3)), observation(answer(1, 9), scores=(score(1, 2, 3),))),
    "champion is empty": (observation(answer()), observation(answer(1))),
    "challenger is empty": (observation(answer(1)), observation(answer())),
    "both are empty": (observation(answer()), observation(answer())),
    "several": (observation(answer(1), answer(2, 3)), observation(answer(1), answer(2, 4))),
    "fewer": (observation(answer(1), answer(2)), observation(answer(1))),
    "more": (observation(answer(1)), observation(answer(1), answer(2))),
    "champion gave none": (observation(), observation(answer(1))),
    "neither gave any": (observation(), observation()),
    "only scored": (observation(answer(1, 2)), scored(score(1, 5))),
    "scored nothing": (observation(answer()), scored(score())),
    "other tokenizer": (
        observation(answer(1, 2)),
        observation(answer(1, 2), scores=(score(1),), **OTHER_TOKENIZER),
    ),
    "infinitely unlikely": (observation(answer(1)), scored(score(9, logprob=-math.inf))),
    "not a number": (observation(answer(1)), scored(score(9, logprob=math.nan))),
}


@pytest.mark.parametrize("name", COMPARATORS)
def test_every_comparator_documents_each_number(name: str) -> None:
    module = import_module(COMPARATORS[name])
    assert module.__name__.rpartition(".")[2] == name  # one file with that name
    assert module.NAMES
    assert all(meaning.strip() for meaning in module.NAMES.values())
    assert (module.__doc__ or "").strip()


def test_no_number_has_two_comparators() -> None:
    names = [number for module in COMPARATORS.values() for number in import_module(module).NAMES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", COMPARATORS)
def test_every_comparator_returns_only_numbers_it_documents(name: str, pair: str) -> None:
    module = import_module(COMPARATORS[name])
    values = module.compare(met(*PAIRS[pair]))
    assert set(values) <= set(module.NAMES)
    assert all(isinstance(value, int | float) for value in values.values())
    assert module.compare(met(*PAIRS[pair])) == pytest.approx(values, nan_ok=True)  # a pure function


@pytest.mark.parametrize("pair", PAIRS)
def test_the_table_gives_all_that_could_be_computed_and_only_finite_numbers(pair: str) -> None:
    expected: dict[str, float] = {}
    for name in DEFAULTS:
        expected |= import_module(COMPARATORS[name]).compare(met(*PAIRS[pair]))
    comparison = compare(*PAIRS[pair], use=DEFAULTS)
    assert comparison.values == {name: value for name, value in expected.items() if math.isfinite(value)}


def test_a_logprob_that_is_no_number_leaves_the_other_numbers() -> None:
    others = {"top1_agreement": 0.0, "first_surprise": 0.0, "scored_tokens": 1.0, "ruled_out_tokens": 0.0}
    assert dict(compare(*PAIRS["not a number"]).values) == others


def test_a_token_that_the_challenger_rules_out_makes_every_number_bad_and_none_go_away() -> None:
    champion = observation(replace(answer(1, 2, 3, 4), logprobs=(-1.0, -1.0, -1.0, -1.0)))
    values = compare(champion, scored(Score((-2.0, -math.inf, -2.0, -2.0), (2, 900, 2, 2)))).values
    assert (values["least_logprob"], values["ruled_out_tokens"]) == (-100.0, 1.0)
    assert values["champion_logprob"] == -26.5
    assert values["perplexity_ratio"] == pytest.approx(math.exp(25.5))
    one_less = compare(champion, scored(Score((-2.0, -50.0, -2.0, -2.0), (2, 900, 2, 2)))).values
    for name in ("least_logprob", "champion_logprob", "perplexity_ratio", "ruled_out_tokens"):
        assert badness(name, values[name]) > badness(name, one_less[name])


def test_a_perfect_challenger() -> None:
    champion = observation(answer(5, 6, 7))
    challenger = observation(answer(5, 6, 7), scores=(score(1, 1, 1, logprob=-0.25),))
    assert dict(compare(champion, challenger).values) == {
        "exact_match": 1.0,
        "token_agreement": 1.0,
        "first_divergence": 3.0,
        "champion_logprob": -0.25,
        "top1_agreement": 1.0,
        "first_surprise": 3.0,
        "least_logprob": -0.25,
        "scored_tokens": 3.0,
        "ruled_out_tokens": 0.0,
    }


@pytest.mark.parametrize(
    ("theirs", "mine", "expected"),
    [
        ([answer(1, 2)], [answer(1, 2)], 1.0),
        ([answer(1, 2)], [answer(1, 3)], 0.0),
        ([answer(1, 2)], [answer(1)], 0.0),
        ([answer(1)], [answer(1, 2)], 0.0),
        ([answer()], [answer()], 1.0),
        ([answer()], [answer(1)], 0.0),
        ([answer(1, text="a")], [answer(1, text="b")], 1.0),  # tokens count, not their text
        ([answer(1, finish_reason="stop")], [answer(1, finish_reason="length")], 1.0),
        ([answer(1), answer(2)], [answer(1), answer(3)], 0.5),
        ([answer(1), answer(2)], [answer(2), answer(1)], 0.0),  # by index, not as a set
        ([answer(1), answer(2)], [answer(1)], 0.5),  # a missing one is no match
        ([answer(1)], [answer(1), answer(2)], 0.5),
    ],
)
def test_exact_match(theirs: list[Any], mine: list[Any], expected: float) -> None:
    assert exact.compare(met(observation(*theirs), observation(*mine))) == {"exact_match": expected}


@pytest.mark.parametrize(
    ("theirs", "mine", "token_agreement", "first_divergence"),
    [
        ((1, 2, 3), (1, 2, 3), 1.0, 3),
        ((1, 2, 3), (1, 9, 3), 2 / 3, 1),  # may agree again after the first difference
        ((1, 2, 3), (9, 2, 3), 2 / 3, 0),
        ((1, 2, 3, 4), (1, 2), 0.5, 2),
        ((1, 2), (1, 2, 3, 4), 0.5, 2),
        ((1, 2), (2, 1), 0.0, 0),
        ((), (), 1.0, 0),
        ((), (1,), 0.0, 0),
        ((1,), (), 0.0, 0),
    ],
)
def test_agreement(
    theirs: tuple[int, ...], mine: tuple[int, ...], token_agreement: float, first_divergence: int
) -> None:
    values = agreement.compare(met(observation(answer(*theirs)), observation(answer(*mine))))
    assert values == {
        "token_agreement": pytest.approx(token_agreement),
        "first_divergence": pytest.approx(first_divergence),
    }


def test_agreement_of_several_answers_is_their_mean_and_a_missing_one_counts_as_none() -> None:
    champion = observation(answer(1, 2), answer(3, 4))
    assert agreement.compare(met(champion, observation(answer(1, 2), answer(3, 9)))) == {
        "token_agreement": 0.75,
        "first_divergence": 1.5,
    }
    assert agreement.compare(met(champion, observation(answer(1, 2)))) == {
        "token_agreement": 0.5,
        "first_divergence": 1.0,
    }


@pytest.mark.parametrize("comparator", [exact, agreement])
def test_answers_in_another_vocabulary_are_not_laid_side_by_side(comparator: Any) -> None:
    champion = observation(answer(1, 2))
    assert comparator.compare(met(champion, observation(answer(1, 2), **OTHER_TOKENIZER))) == {}
    assert comparator.compare(met(champion, observation(answer(1, 2)))) != {}


@pytest.mark.parametrize("comparator", [exact, agreement])
def test_a_challenger_that_was_not_asked_to_answer_has_no_agreement(comparator: Any) -> None:
    assert comparator.compare(met(observation(answer(1)), scored(score(1)))) == {}


def test_likelihood_is_over_all_tokens_of_all_answers() -> None:
    challenger = scored(Score((-1.0, -2.0, -3.0), (1, 2, 1)), Score((-6.0,), (1,)))
    assert likelihood.compare(met(observation(answer(1, 2, 3), answer(4)), challenger)) == {
        "champion_logprob": -3.0,
        "top1_agreement": 0.75,
        "first_surprise": 1.0,
        "least_logprob": -6.0,
        "scored_tokens": 4.0,
        "ruled_out_tokens": 0.0,
    }


def test_likelihood_beside_the_champions_own() -> None:
    """Only over tokens that both sides know; the context of the challenger was one token short here."""
    champion = observation(replace(answer(1, 2, 3), logprobs=(-1.0, -0.5, -9.0)))
    challenger = scored(Score((-1.5, -1.0), (1, 2), (0.5, 1.5), (1, 7)))
    values = likelihood.compare(met(champion, challenger))
    assert values["perplexity_ratio"] == pytest.approx(math.exp(0.5))
    assert values["mean_entropy"] == 1.0
    elsewhere = replace(challenger, rendered="own_template")
    assert "perplexity_ratio" not in likelihood.compare(met(champion, elsewhere))


def test_divergences_are_means_over_the_tokens_that_were_compared() -> None:
    apart = Divergence((0.1, 0.3), (0.2, 0.6), (0.0, 0.5), (1.0, 1.0))
    challenger = scored(Score((-1.0, -1.0), (1, 1), (1.5, 2.5), (1, 2), apart), Score((-1.0,), (1,), (9.0,), (1,)))
    values = likelihood.compare(met(observation(answer(1, 2), answer(3)), challenger))
    found = {name: values[name] for name in ("kl_forward", "kl_backward", "hellinger", "entropy_difference")}
    assert found == pytest.approx({"kl_forward": 0.2, "kl_backward": 0.4, "hellinger": 0.25, "entropy_difference": 1.0})


def test_the_noise_floor_brings_a_ratio_where_both_read_the_same_tokens() -> None:
    own = {"champion_logprob": -1.0, "scored_tokens": 4.0}
    mine = {"champion_logprob": -1.5, "scored_tokens": 4.0}
    assert likelihood.beside_own(own, mine)["perplexity_ratio"] == pytest.approx(math.exp(0.5))
    for left_as_it_was in (mine | {"perplexity_ratio": 3.0}, mine | {"scored_tokens": 3.0}, {"scored_tokens": 4.0}):
        assert likelihood.beside_own(own, left_as_it_was) == left_as_it_was
    assert likelihood.beside_own({}, mine) == mine


def test_a_perplexity_beyond_floats_is_large_and_no_error() -> None:
    champion = observation(replace(answer(1), logprobs=(-1.0,)))
    values = likelihood.compare(met(champion, scored(Score((-5000.0,), (9,)))))
    assert values["perplexity_ratio"] == pytest.approx(math.exp(99.0))


def test_likelihood_is_there_in_another_vocabulary_too() -> None:
    """The challenger's own tokens of the champion's text: lengths differ, and that is all right."""
    challenger = scored(score(1, 1, 4), **OTHER_TOKENIZER)
    assert likelihood.compare(met(observation(answer(1, 2)), challenger))["scored_tokens"] == 3.0


@pytest.mark.parametrize("scores", [(), (score(),), (score(), score())])
def test_likelihood_of_nothing_is_absent(scores: tuple[Score, ...]) -> None:
    assert likelihood.compare(met(observation(answer()), scored(*scores))) == {}


def test_pairs_have_the_champion_first_and_each_missing_one_on_its_own_side() -> None:
    one, two, three = answer(1), answer(2), answer(3)
    assert answer_pairs(observation(one, two), observation(three)) == [(one, three), (two, MISSING)]
    assert answer_pairs(observation(one), observation(two, three)) == [(one, two), (MISSING, three)]
    assert answer_pairs(observation(), observation(one)) == [(MISSING, one)]
    assert answer_pairs(observation(one), observation()) == []


def test_sides_swapped_by_mistake_would_be_seen() -> None:
    """Only the challenger's scores, and only the challenger's missing answer, mean something (diffy #86)."""
    champion = observation(answer(1, 2), scores=(score(7, 7, logprob=-9.0),))
    challenger = scored(score(1, 1, logprob=-0.1))
    assert dict(compare(champion, challenger).values) == {
        "champion_logprob": pytest.approx(-0.1),
        "least_logprob": pytest.approx(-0.1),
        "first_surprise": 2.0,
        "top1_agreement": 1.0,
        "scored_tokens": 2.0,
        "ruled_out_tokens": 0.0,
    }
    swapped = compare(challenger, champion).values
    assert swapped["champion_logprob"] == -9.0
    assert swapped["top1_agreement"] == 0.0
    assert swapped["exact_match"] == 0.0  # and here the champion's answers are the ones that are missing


def test_the_challengers_rendering_decides_and_not_the_champions() -> None:
    mine, theirs = observation(answer(1)), observation(answer(1), **OTHER_TOKENIZER)
    assert "token_agreement" not in compare(mine, theirs).values
    assert "token_agreement" in compare(theirs, mine).values
