"""JSON answers: validity, schema, structured differences, and labels taken out of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.builders import answer, met, observation

from understudy.compare import label, schema, structure
from understudy.compare.jsontext import UNREADABLE, read_loosely, read_strictly
from understudy.compare.options import CompareSpec, json_path
from understudy.compare.structure import Change, changes
from understudy.errors import ConfigError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def pair(theirs: str, mine: str, body: Any = None, **options: Any) -> Any:
    return met(observation(answer(1, text=theirs)), observation(answer(1, text=mine), model="b"), body=body, **options)


def wanting(schema: Any) -> list[dict[str, Any]]:
    """The bodies that ask for a schema, as chat completions, vLLM and responses have it."""
    return [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"structured_outputs": {"json": schema}},
        {"structured_outputs": {"json": json.dumps(schema)}},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
    ]


@pytest.mark.parametrize("body", wanting(PERSON))
def test_schema_adherence(body: dict[str, Any]) -> None:
    values = schema.compare(pair('{"name": "bo"}', '{"name": "bo", "age": "old"}', body))
    assert values == {
        "champion_json_valid": 1.0,
        "challenger_json_valid": 1.0,
        "champion_schema_valid": 1.0,
        "challenger_schema_valid": 0.0,
    }
    assert schema.compare(pair("{}", "NaN", body))["challenger_json_valid"] == 0.0


def test_json_without_a_schema_and_no_json_at_all() -> None:
    body = {"response_format": {"type": "json_object"}}
    assert schema.compare(pair("{}", "```json\n{}\n```", body)) == {
        "champion_json_valid": 1.0,
        "challenger_json_valid": 0.0,
    }
    assert schema.compare(pair("{}", "{}", {"response_format": {"type": "text"}})) == {}
    assert schema.compare(pair("{}", "{}")) == {}


@pytest.mark.timeout(20)
def test_a_clients_regular_expression_is_not_run() -> None:
    """(a+)+$ on this takes longer than the universe is old, with the interpreter held."""
    evil = json.dumps({"name": "a" * 60 + "!"})
    assert schema.compare(pair(evil, evil, wanting(PERSON)[0]))["challenger_schema_valid"] == 1.0
    odd = {"type": "object", "patternProperties": {"^(a+)+$": {"type": "string"}}}
    assert set(schema.compare(pair(evil, evil, wanting(odd)[0]))) == {"champion_json_valid", "challenger_json_valid"}


def test_a_reference_to_another_document_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: pytest.fail("it was fetched"))
    pointing = pair("{}", "{}", wanting({"$ref": "http://127.0.0.1:9/schema.json"})[0])
    assert set(schema.compare(pointing)) == {"champion_json_valid", "challenger_json_valid"}


@pytest.mark.parametrize("bad", [{"type": 7}, {"$ref": 3}, "not a schema"])
def test_a_schema_that_is_none_is_not_checked(bad: Any) -> None:
    assert set(schema.compare(pair("{}", "{}", wanting(bad)[0]))) == {"champion_json_valid", "challenger_json_valid"}


@pytest.mark.parametrize(
    ("theirs", "mine", "similarity"),
    [
        ('{"a": 1, "b": [1, 2]}', ' {"b": [1, 2.0], "a": 1}', 1.0),  # order, space and 2 == 2.0
        ('{"a": 1}', '{"a": true}', 0.0),
        ('{"a": 1}', '{"a": "1"}', 0.0),
        ('{"a": null}', "{}", 0.0),
        ('{"a": 1, "b": 2}', '{"a": 1, "c": 2}', 1 / 3),
        ("[1, 2, 3]", "[1, 2]", 2 / 3),
        ("{}", "{}", 1.0),
        ("{}", "[]", 0.0),
        ("```json\n[1]\n```", "[1]", 1.0),
        ("[1]", "one", 0.0),
        ("[1", "[1]", 0.0),
    ],
)
def test_structural_similarity(theirs: str, mine: str, similarity: float) -> None:
    assert structure.compare(pair(theirs, mine)) == {
        "json_similarity": pytest.approx(similarity),
        "json_match": float(similarity == 1.0),
    }


def test_prose_and_bare_numbers_are_no_json_unless_it_was_asked_for() -> None:
    assert structure.compare(pair("yes", "yes")) == structure.compare(pair("1", "1")) == {}
    asked = pair("yes", "yes", {"response_format": {"type": "json_object"}})
    assert structure.compare(asked) == {"json_similarity": 0.0, "json_match": 0.0}


def test_changes_name_the_path_the_kind_and_both_values() -> None:
    theirs = {"a": 1, "b": {"x y": [1, {"c": None}]}, "d": "s"}
    mine = {"a": 2, "b": {"x y": [1, {"c": 0}]}, "e": []}
    assert changes(theirs, mine) == [
        Change("$.a", "value", 1, 2),
        Change("$.b['x y'][1].c", "type", None, 0),
        Change("$.d", "champion only", "s"),
        Change("$.e", "challenger only", None, []),
    ]
    assert changes(theirs, theirs) == []


def test_json_that_nests_without_end_is_read_or_refused_but_does_not_raise() -> None:
    assert read_strictly("[" * 100_000) is UNREADABLE
    deep = "[" * 500 + "]" * 500
    assert structure.compare(pair(deep, deep)) == {"json_similarity": 1.0, "json_match": 1.0}


def test_loose_reading_takes_a_fence_and_nothing_else() -> None:
    assert read_loosely('```json\n{"a": 1}\n```') == read_loosely(' {"a": 1}\n') == {"a": 1}
    assert read_loosely('Here you are: {"a": 1}') is UNREADABLE


@pytest.mark.parametrize(
    ("theirs", "mine", "match", "found"),
    [
        ("label: Spam", "So: LABEL: spam .", 1.0, 1.0),
        ("label: spam", "label: ham", 0.0, 1.0),
        ("label: spam", "spam", 0.0, 0.0),
        ("spam", "spam", 0.0, 0.0),  # two that are not readable do not agree
    ],
)
def test_labels_by_pattern(theirs: str, mine: str, match: float, found: float) -> None:
    values = label.compare(pair(theirs, mine, label_pattern=r"label: (\w+)"))
    assert (values["label_match"], values["challenger_label_found"]) == (match, found)


def test_labels_by_json_path() -> None:
    options = {"label_json_path": "$.result[0].category"}
    theirs = '{"result": [{"category": "Spam"}]}'
    assert label.compare(pair(theirs, theirs.lower(), **options))["label_match"] == 1.0
    for mine in ('{"result": []}', '{"result": "spam"}', "spam", '{"result": [{"category": ["spam"]}]}'):
        values = label.compare(pair(theirs, mine, **options))
        assert values == {"label_match": 0.0, "challenger_label_found": 0.0, "champion_label_found": 1.0}


def test_json_paths() -> None:
    assert json_path("$.a.b[0]['c d'].e-f") == ["a", "b", 0, "c d", "e-f"]
    assert json_path("label") == ["label"]
    for bad in ("$", "", "$..a", "$.*", "$[?(@.a)]", "$[-1]"):
        with pytest.raises(ConfigError, match=r"compare.label_json_path: .* must"):
            json_path(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": ("exakt",)}, "compare.use: 'exakt' is no comparator; did you mean 'exact'?"),
        ({"use": ("label",)}, "compare.use: 'label' needs compare.label_pattern or compare.label_json_path"),
        ({"use": ("cost",)}, "compare.use: 'cost' needs compare.token_prices"),
        ({"max_characters": 0}, "compare.max_characters: 0 must be a whole number above 0"),
        ({"label_pattern": "label"}, "compare.label_pattern: 'label' must have a group"),
        ({"label_pattern": "("}, "compare.label_pattern: '(' is no regular expression"),
        ({"label_pattern": "(a)", "label_json_path": "a"}, "compare.label_json_path: give either it or"),
        (
            {"token_prices": {"m": {"input": 1}}},
            "compare.token_prices.m: {'input': 1} must be {input: USD, output: USD}",
        ),
        ({"token_prices": {"m": {"input": -1, "output": 1}}}, "compare.token_prices.m.input: -1 must be"),
        ({"callables": {"Tone": "a:b"}}, "compare.callables.Tone: a name has small letters"),
        ({"callables": {"tone": "a.b"}}, "compare.callables.tone: 'a.b' must be an import path"),
    ],
)
def test_a_wrong_option_names_the_key_the_value_and_the_rule(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        CompareSpec(**options)
    assert str(raised.value).startswith(message)


def test_label_and_cost_are_used_where_their_options_are_set() -> None:
    names = CompareSpec(use=("exact",), label_pattern="(a)", token_prices={"m": {"input": 0, "output": 1}}).names
    assert names == ("exact", "label", "cost")


def doubling(depth: int) -> dict[str, Any]:
    """A small schema that takes 2^depth steps to check."""
    twice = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": twice | {f"d{depth}": {"type": "object"}}}


def test_a_schema_that_doubles_without_end_is_given_up_and_small_ones_are_not() -> None:
    assert schema.follows(doubling(10), {}) is True
    assert schema.follows(doubling(60), {}) is None
    (body, *_) = wanting(doubling(60))
    assert schema.compare(pair("{}", "{}", body)) == {"challenger_json_valid": 1.0, "champion_json_valid": 1.0}


def test_one_slow_step_after_the_other_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_CPU_S", 0.0)
    assert schema.follows(PERSON, {"name": "Ada"}) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#"},  # endless
        {"allOf": [{"$ref": "https://example.com/schema.json"}]},
        {"description": "x" * schema.MAX_CHARACTERS},
        {"enum": ["x"] * schema.MAX_STEPS},
    ],
)
def test_a_schema_that_cannot_be_checked_costs_only_its_own_numbers(asked: dict[str, Any]) -> None:
    for body in wanting(asked):
        found = schema.compare(pair('{"a": 1}', "no", body))
        assert found == {"challenger_json_valid": 0.0, "champion_json_valid": 1.0}


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, 2], True), ([1, 1.0], False), ([True, 1], True), ([[1], [1.5]], True),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ([{"n": n} for n in range(10_000)], True),  # the library's own way takes a minute for these
    ],
)  # fmt: skip
def test_unique_items(items: list[Any], unique: bool) -> None:
    assert schema.follows({"uniqueItems": True}, items) is unique
