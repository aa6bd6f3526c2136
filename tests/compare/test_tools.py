"""Tool calls: read in the forms that models write, compared, checked against the request's schemas, never executed."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import answer, met, observation

from understudy.compare import tools
from understudy.compare.asked import Asked, ToolCall
from understudy.compare.calls import calls_in

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
CHAT = {"tools": [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
                  {"type": "function", "function": {"name": "now"}}]}  # fmt: skip
RESPONSES = {"tools": [{"type": "function", "name": "weather", "parameters": WEATHER}, {"type": "web_search"}]}
MESSAGES = {"tools": [{"name": "weather", "input_schema": WEATHER}], "tool_choice": {"type": "any"}}
ASKED = Asked(tools={"weather": WEATHER, "now": {}})
UNREADABLE = ToolCall("", None)
OSLO = ToolCall("weather", {"city": "Oslo"})


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


A = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'
A_IN_OTHER_WORDS = '{"arguments": {"days": 2, "city": "Oslo"}, "name": "weather"}'
B = '{"name": "weather", "arguments": {"city": "Rome"}}'
WRONG_TYPE = '{"name": "weather", "arguments": {"city": 7}}'
UNKNOWN = '{"name": "launch", "arguments": {}}'
BROKEN = '{"name": "weather", "arguments": {"city": '


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>', [OSLO]),
        ('Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}', [OSLO]),  # the end was a stop
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', [OSLO]),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "now", "parameters": {}}',
         [OSLO, ToolCall("now", {})]),
        ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]', [OSLO]),
        ('[TOOL_CALLS]weather{"city": "Oslo"}', [OSLO]),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]now[ARGS]{}', [OSLO, ToolCall("now", {})]),
        ('[{"name": "weather", "parameters": {"city": "Oslo"}}]', [OSLO]),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}', [OSLO]),
        ("<tool_call>{oops</tool_call>", [ToolCall("", None)]),
        ('[TOOL_CALLS]weather[ARGS]{"city": ', [ToolCall("weather", None)]),
        ('{"name": "Bo", "arguments": {}}', []),  # JSON, but of no tool that there is
        ('{"name": "weather"}', []),
        ("The weather in Oslo is fine.", []),
        ("", []),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_forms_that_models_write(text: str, calls: list[ToolCall]) -> None:
    assert list(calls_in(text, ASKED)) == calls


def test_a_tool_that_must_be_called_leaves_its_arguments_alone_in_the_text() -> None:
    named = Asked(tools=ASKED.tools, tool_choice="weather")
    assert list(calls_in('{"city": "Oslo"}', named)) == [OSLO]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "weather", "parameters": {"city": "Os', [UNREADABLE]),
        ('<|python_tag|>{"name": "weather", "para', [UNREADABLE]),
        ('<|python_tag|>weather.call(city="Os', [UNREADABLE]),
        ('[{"name": "weather", "parameters": {"ci', [UNREADABLE]),
        ('{"type": "function", "name": "wea', [UNREADABLE]),
        ('{"na', [UNREADABLE]),
        ("{", [UNREADABLE]),
        ("[TOOL_", [UNREADABLE]),
        ("<tool", [UNREADABLE]),
        ('{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "no', [OSLO, UNREADABLE]),
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', [OSLO]),  # the limit was just enough
        ('{"name": "Bo", "arguments": {"a', []),  # JSON, but of no tool that there is
        ('{"type": "rain", "mm', []),
        ('{"city": "Os', []),
        ("[1, 2", []),
        ("The weather in Os", []),
        ("", []),
    ],
)
def test_what_was_cut_off_and_begins_like_a_call_is_one_that_cannot_be_read(text: str, calls: list[ToolCall]) -> None:
    assert list(calls_in(text, ASKED, cut=True)) == calls


@pytest.mark.parametrize("choice", ["weather", "required"])
@pytest.mark.parametrize("text", ['{"city": "Os', "[", "", "Let me"])
def test_what_was_cut_off_and_had_to_be_a_call_is_one_that_cannot_be_read(text: str, choice: str) -> None:
    asked = Asked(tools=ASKED.tools, tool_choice=choice)
    assert list(calls_in(text, asked, cut=True)) == [UNREADABLE]
    assert list(calls_in(text, asked)) == []


def compared(theirs: str, mine: str, body: Any = None, *, finish_reason: str = "stop", **more: Any) -> dict[str, float]:
    """``finish_reason`` is the challenger's."""
    champion = observation(answer(1, text=theirs))
    challenger = observation(answer(1, text=mine, finish_reason=finish_reason), model="b")
    return dict(tools.compare(met(champion, challenger, body=body or CHAT, **more)))


def test_the_same_call_in_other_words_is_the_same() -> None:
    assert compared(hermes(A), hermes(A_IN_OTHER_WORDS)) == {
        "tool_decision_match": 1.0,
        "tool_name_match": 1.0,
        "tool_call_match": 1.0,
        "champion_tool_valid": 1.0,
        "challenger_tool_valid": 1.0,
    }
    assert compared(hermes(A, B), hermes(B, A))["tool_call_match"] == 1.0  # parallel calls have no order


@pytest.mark.parametrize(
    ("mine", "name", "call", "valid"),
    [
        (hermes(B), 1.0, 0.0, 1.0),
        (hermes(WRONG_TYPE), 1.0, 0.0, 0.0),
        (hermes(UNKNOWN), 0.0, 0.0, 0.0),
        (hermes(BROKEN), 0.0, 0.0, 0.0),
        (hermes(A, B), 0.5, 0.5, 1.0),
        (hermes(A, UNKNOWN), 0.5, 0.5, 0.5),
    ],
)
def test_what_differs_and_what_is_not_valid(mine: str, name: float, call: float, valid: float) -> None:
    values = compared(hermes(A), mine)
    assert (values["tool_name_match"], values["tool_call_match"]) == (name, call)
    assert values["challenger_tool_valid"] == valid
    assert values["champion_tool_valid"] == values["tool_decision_match"] == 1.0


def test_whether_to_call_at_all_is_a_decision_of_its_own() -> None:
    assert compared("Fine weather.", "It is fine.") == {"tool_decision_match": 1.0}
    values = compared(hermes(A), "It is fine.")
    assert values == {
        "tool_decision_match": 0.0,
        "tool_name_match": 0.0,
        "tool_call_match": 0.0,
        "champion_tool_valid": 1.0,
    }


def test_two_calls_that_cannot_be_read_are_not_the_same() -> None:
    values = compared(hermes(BROKEN), hermes(BROKEN))
    assert values["tool_call_match"] == values["tool_name_match"] == 0.0
    assert values["tool_decision_match"] == 1.0  # both were meant to be one


NAMED = CHAT | {"tool_choice": {"type": "function", "function": {"name": "weather"}}}


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ('{"name": "weather", "parameters": {"city": "Os', CHAT),
        ('<tool_call>{"name": "weather", "argu', CHAT),
        ('{"city": "Os', NAMED),
        ('[{"name": "weather", "parameters": {"ci', MESSAGES),
    ],
)
def test_two_calls_that_were_cut_off_are_no_tie(text: str, body: Any) -> None:
    cut = observation(answer(1, text=text, finish_reason="length"))
    assert tools.compare(met(cut, cut, body=body)) == dict.fromkeys(tools.NAMES, 0.0)


def test_a_call_that_was_cut_off_agrees_with_no_decision() -> None:
    for theirs in (hermes(A), "It is fine."):
        assert compared(theirs, '{"name": "wea', finish_reason="length")["tool_decision_match"] == 0.0
    for mine in ('[TOOL_CALLS]weather[ARGS]{"ci', hermes(A) + "<tool_call>"):  # as far as it goes, it is one
        values = compared(hermes(A), mine, finish_reason="length")
        assert values["tool_decision_match"] == 1.0
        assert values["tool_name_match"] > 0.0
    assert compared("It is fine.", "It is", finish_reason="length") == {"tool_decision_match": 1.0}


@pytest.mark.parametrize("body", [CHAT, RESPONSES, MESSAGES])
def test_schemas_are_found_in_the_body_of_each_endpoint(body: Any) -> None:
    assert compared(hermes(A), hermes(WRONG_TYPE), body)["challenger_tool_valid"] == 0.0


def test_who_had_to_call_and_did_not_is_not_valid() -> None:
    assert compared(hermes(A), "It is fine.", MESSAGES)["challenger_tool_valid"] == 0.0
    assert compared('{"city": "Oslo"}', "no", NAMED)["challenger_tool_valid"] == 0.0


@pytest.mark.parametrize("body", [{}, {"tools": []}, CHAT | {"tool_choice": "none"}, {"tools": "weather"}])
def test_without_tools_there_is_nothing_to_compare(body: Any) -> None:
    champion = observation(answer(1, text=hermes(A)))
    assert tools.compare(met(champion, champion, body=body)) == {}


def test_the_servers_own_parser_is_asked_first_and_the_common_forms_after_it() -> None:
    champion = observation(answer(1, text="<<weather Oslo>>"))
    challenger = observation(answer(1, text='{"name": "weather", "parameters": {"city": "Oslo"}}'))
    pair = met(champion, challenger, body=CHAT)
    pair.parse_tools = lambda text, _: [OSLO] if text.startswith("<<") else None
    assert tools.compare(pair)["tool_call_match"] == 1.0
