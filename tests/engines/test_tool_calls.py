"""vLLM's own tool parsers as comparators use them. No engine is started."""

from __future__ import annotations

import pytest

from understudy.compare.asked import Asked, ToolCall

pytestmark = pytest.mark.slow  # importing vllm takes seconds
ASKED = Asked(tools={"weather": {"type": "object", "properties": {"city": {"type": "string"}}}})
OSLO = [ToolCall("weather", {"city": "Oslo"})]


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("hermes", 'Well. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'),
        ("llama3_json", '{"name": "weather", "parameters": {"city": "Oslo"}}'),
        ("pythonic", '[weather(city="Oslo")]'),  # a form that only vLLM's parser reads
    ],
)
def test_calls_are_read_as_the_client_sees_them(parser: str, text: str) -> None:
    from tests.serving.models import tokenizer

    from understudy.engines.tool_calls import vllm_parser

    words = tokenizer("plain")
    words.add_special_tokens({"additional_special_tokens": ["<|python_tag|>"]})  # llama3_json insists on it
    parse = vllm_parser(parser, words)
    assert parse(text, ASKED) == OSLO
    assert parse(text, ASKED) == OSLO  # and no state is left
    assert parse("It is fine in Oslo.", ASKED) is None
