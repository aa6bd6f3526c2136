"""What every comparator in the table promises for sides swapped, and for answers missing, cut off or unreadable."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from tests.builders import answer, met, observation

from understudy.compare import COMPARATORS, Comparators, load
from understudy.compare.base import Pair
from understudy.compare.options import DEFAULTS
from understudy.compare.ranking import FAR_FROM_ONE_IS_WORSE, HIGH_IS_WORSE, badness, number_of
from understudy.errors import ConfigError
from understudy.types import Observation, Outcome

OPTIONS: dict[str, Any] = {
    "label_pattern": r"label: (\w+)",
    "token_prices": {"champion": {"input": 1, "output": 2}, "b": {"input": 0.5, "output": 3}},
}
BODY = {
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["a"]}}},
    "tools": [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}],
}
TEXTS = ['{"a": 1}', '{"a": 2, "b": [1]}', "label: spam", "I cannot help with that.", '{"a": 1', "", '{"b": "x"}',
         '<tool_call>{"name": "find", "arguments": {}}</tool_call>']  # fmt: skip
ONE_SIDED = {"likelihood", "chrf"}  # the challenger reads the champion; the champion is the reference
DEFINED_WORST = {
    "exact_match", "token_agreement", "text_similarity", "text_match", "chrf", "finish_reason_match", "json_similarity",
    "json_match", "challenger_json_valid", "challenger_schema_valid", "label_match", "challenger_label_found",
    "refusal_match", "tool_decision_match",
}  # fmt: skip


def pair_of(champion: Observation, challenger: Observation) -> Pair:
    return met(champion, replace(challenger, model="b"), body=BODY, **OPTIONS)


def said(*texts: str, **fields: Any) -> Observation:
    reason = fields.pop("finish_reason", "stop")
    answers = [answer(*text.encode(), text=text, finish_reason=reason) for text in texts]
    return observation(*answers, **fields)


def values(name: str, champion: Observation, challenger: Observation) -> dict[str, float]:
    return dict(load(name).compare(pair_of(champion, challenger)))


def mirrored(number: str) -> str:
    role, _, rest = number.partition("_")
    other = {"champion": "challenger", "challenger": "champion"}.get(role)
    return number if other is None else f"{other}_{rest}"


@pytest.mark.parametrize("name", sorted(set(COMPARATORS) - ONE_SIDED))
@pytest.mark.parametrize("mine", TEXTS)
def test_with_the_sides_swapped_every_number_is_the_other_sides(name: str, mine: str) -> None:
    for theirs in TEXTS:
        champion, challenger = said(theirs), said(mine, "more", timings=replace(said().timings, finished_s=0.5))
        prices = {"champion": OPTIONS["token_prices"]["b"], "b": OPTIONS["token_prices"]["champion"]}
        there = values(name, champion, challenger)
        pair = pair_of(challenger, champion)
        pair.options = replace(pair.options, token_prices=prices)
        back = load(name).compare(pair)
        for number, value in there.items():
            other = back[mirrored(number)]
            assert (1 / other if number.endswith("_ratio") else other) == pytest.approx(value), (number, theirs, mine)
        assert {mirrored(number) for number in there} == set(back)


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
@pytest.mark.parametrize("theirs", ['{"a": 1}', "label: spam", "I cannot help with that."])
def test_half_an_answer_of_a_challenger_that_failed_is_the_worst_there_is(
    name: str, outcome: Outcome, theirs: str
) -> None:
    failed = said(theirs, outcome=outcome)  # the very same text, and still no answer
    found = values(name, said(theirs), failed)
    assert all(found[number] == 0.0 for number in DEFINED_WORST & set(found))
    assert found.get("challenger_missing", 1.0) == 1.0
    assert "challenger_end_to_end_s" not in found


@pytest.mark.parametrize("name", COMPARATORS)
def test_two_sides_that_both_failed_do_not_agree(name: str) -> None:
    found = values(name, said("x", outcome=Outcome.FAILED), observation(outcome=Outcome.FAILED))
    assert all(found[number] == 0.0 for number in DEFINED_WORST & set(found))


@pytest.mark.parametrize("name", COMPARATORS)
def test_an_answer_that_is_missing_among_several_counts_as_the_worst(name: str) -> None:
    whole = values(name, said("label: a", "label: a"), said("label: a", "label: a"))
    less = values(name, said("label: a", "label: a"), said("label: a"))
    for number in DEFINED_WORST & set(whole) & set(less):
        assert less[number] == pytest.approx(whole[number] / 2), number


@pytest.mark.parametrize("name", sorted(set(COMPARATORS) - {"likelihood"}))
def test_a_challenger_that_was_not_asked_to_answer_has_no_number(name: str) -> None:
    assert values(name, said("x"), observation()) == {}


@pytest.mark.parametrize("text", ['{"a": 1', "lab", '<tool_call>{"name": "find", "argu', '{"name": "find", "para'])
def test_two_answers_that_were_cut_off_unreadably_do_not_agree(text: str) -> None:
    cut = said(text, finish_reason="length")
    pair = pair_of(cut, cut)
    found = Comparators(pair.options).compare(pair.exchange, pair.challenger).values
    assert (found["champion_truncated"], found["challenger_truncated"]) == (1.0, 1.0)
    assert found["json_match"] == found["json_similarity"] == found["label_match"] == 0.0
    assert found["challenger_json_valid"] == found["challenger_schema_valid"] == 0.0
    assert found.get("tool_call_match", 0.0) == found.get("tool_name_match", 0.0) == 0.0
    assert found["tool_decision_match"] == (0.0 if "find" in text else 1.0)
    assert found["exact_match"] == 1.0  # the tokens, as far as they go, are the same, and that is all it says


def test_every_number_has_a_direction_and_every_listed_number_exists() -> None:
    names = {number for name in COMPARATORS for number in load(name).NAMES}
    assert names >= HIGH_IS_WORSE | FAR_FROM_ONE_IS_WORSE
    for number in names:  # by the words of their names
        rising = re.search(r"_(s|usd|tokens|truncated|missing|refused)$", number) and number != "scored_tokens"
        assert not rising or badness(number, 2.0) > badness(number, 1.0), number
    assert badness("exact_match", 0.0) > badness("exact_match", 1.0)
    assert badness("length_ratio", 0.1) > badness("length_ratio", 2.0) > badness("length_ratio", 1.0)
    assert badness("length_ratio", 0.0) == math.inf


def test_every_number_of_one_side_has_its_twin_but_the_one_that_is_about_the_champions_tokens() -> None:
    names = {number for name in COMPARATORS for number in load(name).NAMES}
    sided = {number for number in names if number.startswith(("champion_", "challenger_"))}
    assert {number for number in sided if mirrored(number) not in names} == {"champion_logprob"}


def test_worst_takes_a_comparator_or_one_of_its_numbers() -> None:
    assert number_of("text") == "text_similarity"
    assert number_of("length.length_ratio") == number_of("length_ratio") == "length_ratio"
    assert number_of("custom_tone") == "custom_tone"
    with pytest.raises(ConfigError, match=r"'length.tone': length has finish_reason_match, length_ratio"):
        number_of("length.tone")
    with pytest.raises(ConfigError, match="'tone' is no comparator or number; comparators are agreement, chrf"):
        number_of("tone")


def test_the_defaults_need_no_option_and_no_extra() -> None:
    assert set(DEFAULTS) == set(COMPARATORS) - {"chrf", "cost", "label"}
    Comparators()


def test_a_body_that_is_no_json_asks_for_nothing() -> None:
    pair = pair_of(said("x"), said("x"))
    for body in (b"\xff", b"[" * 100_000, b"[]", json.dumps({"tools": [1, {}, {"function": 3}], "text": 2}).encode()):
        exchange = replace(pair.exchange, facts=replace(pair.exchange.facts, body=body))
        asked = Pair(exchange, pair.challenger, pair.options).asked
        assert (dict(asked.tools), asked.wants_json, asked.schema) == ({}, False, None)
