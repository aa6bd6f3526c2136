"""What a challenger with another tokenizer is given to render."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.builders import exchange

from understudy.engines.render import Chat, messages_of, text_of
from understudy.errors import Unsupported
from understudy.types import Exchange, RequestFacts

USER: dict[str, Any] = {"role": "user", "content": "Wo ist der Bär?"}


def request(endpoint: str, body: Any) -> Exchange:
    raw = None if body is None else json.dumps(body).encode()
    return exchange(facts=RequestFacts(endpoint=endpoint, body=raw))


def responses_messages(**body: Any) -> list[Any]:
    chat = messages_of(request("/v1/responses", body))
    assert chat is not None
    assert chat.tools is None
    return list(chat.messages)


def test_a_chat_is_its_messages_and_tools_as_they_are() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "find"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "in the wood"},
    ]
    tools = [{"type": "function", "function": {"name": "find"}}]
    body = {"model": "champion", "messages": messages, "tools": tools}
    assert messages_of(request("/v1/chat/completions", body)) == Chat(messages, tools)


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_none(tools: Any) -> None:
    chat = messages_of(request("/v1/chat/completions", {"messages": [USER], "tools": tools}))
    assert chat == Chat([USER], None)


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/prefix/v1/completions"])
@pytest.mark.parametrize("body", [{"prompt": "Es war einmal"}, {"prompt": [1, 2]}, None])
def test_a_completion_has_no_messages(endpoint: str, body: Any) -> None:
    assert messages_of(request(endpoint, body)) is None


def test_a_generation_that_no_http_request_asked_for_has_no_messages() -> None:
    assert messages_of(exchange()) is None
    assert messages_of(request("/inference/v1/generate", {"token_ids": [1, 2]})) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": "Hello"}, [{"role": "user", "content": "Hello"}]),
        (
            {"input": "Hello", "instructions": "Be brief."},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        ),
        ({"input": "Hello", "instructions": None}, [{"role": "user", "content": "Hello"}]),
        ({"input": [USER]}, [USER]),
        ({"input": [{**USER, "type": "message", "id": "msg_1", "status": "completed"}]}, [USER]),
        ({"input": [{"content": "no role"}]}, [{"role": "user", "content": "no role"}]),
        (
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
                    },
                    {"role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
                ]
            },
            [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}],
        ),
        ({"input": []}, []),
    ],
)
def test_a_responses_request_becomes_messages_as_far_as_it_is_text(body: dict[str, Any], expected: list[Any]) -> None:
    assert responses_messages(**body) == expected


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "in the wood"},
        {"type": "reasoning", "content": None},
        {"role": "user", "content": 5},
    ],
)
def test_what_cannot_be_rendered_again_is_unsupported_and_not_left_out(item: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="cannot be rendered again") as raised:
        responses_messages(input=[USER, item])
    assert raised.value.reason == "cannot_render"


def test_the_text_of_a_prompt_is_the_requests_own_where_it_has_one() -> None:
    assert text_of(exchange(prompt_text="Es war einmal"), lambda _: "decoded") == "Es war einmal"


def test_a_prompt_of_token_ids_is_decoded_by_the_champion() -> None:
    given = exchange(prompt_token_ids=(5, 6))
    assert text_of(given, lambda token_ids: f"decoded {token_ids}") == "decoded [5, 6]"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_content_parts_of_text_are_joined_as_vllm_joins_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = messages_of(request("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]}))
    assert chat == Chat([{"role": "user", "content": "a\nb"}], None)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [IMAGE]}]}),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        ),
    ],
)
def test_a_picture_is_unsupported_and_not_left_out(endpoint: str, body: Any) -> None:
    with pytest.raises(Unsupported):
        messages_of(request(endpoint, body))


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", {"input": "And then?", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": "Find it.", "tools": [{"type": "function", "name": "find"}]}),
        ("/v1/messages", {"messages": [USER], "system": "Be brief."}),
        ("/v1/chat/completions", {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}),
        ("/v1/chat/completions", None),
    ],
)
def test_what_would_be_rendered_in_part_is_unsupported(endpoint: str, body: Any) -> None:
    with pytest.raises(Unsupported):
        messages_of(request(endpoint, body))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "text": "hm"},
        {"type": "text"},
        {"type": "text", "text": None},
        {"text": "no type"},
        {"type": "refusal", "refusal": "no"},
    ],
)
def test_a_part_that_is_not_plainly_text_is_unsupported(part: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}
    with pytest.raises(Unsupported, match="a part of type"):
        messages_of(request("/v1/chat/completions", body))


def test_a_part_may_be_a_bare_text() -> None:
    body = {"messages": [{"role": "user", "content": ["a", "b"]}]}
    chat = messages_of(request("/v1/chat/completions", body))
    assert chat == Chat([{"role": "user", "content": "a\nb"}], None)


def test_the_arguments_of_a_tool_call_are_a_mapping() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"what": "bear"}'}}
    body = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    chat = messages_of(request("/v1/chat/completions", body))
    assert chat is not None
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"what": "bear"}


def test_a_chat_without_a_generation_prompt_is_unsupported() -> None:
    body = {"messages": [USER], "add_generation_prompt": False}
    with pytest.raises(Unsupported):
        messages_of(request("/v1/chat/completions", body))
