"""Tool calls as vLLM's server reads them for the client, by the parser named in ``server.tool_call_parser``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager

from understudy.compare.asked import Asked, ToolCall
from understudy.compare.base import ParseTools


def vllm_parser(name: str, tokenizer: Any) -> ParseTools:
    """Text to calls; None where vLLM finds none, which may only mean that the text has another model's form.

    ``tokenizer`` is the champion's; some parsers look up their own tokens in it.
    """

    def parse(text: str, asked: Asked) -> Sequence[ToolCall] | None:
        tools = [
            {"type": "function", "function": {"name": tool, "parameters": dict(schema)}}
            for tool, schema in asked.tools.items()
        ]
        request = ChatCompletionRequest(messages=[{"role": "user", "content": ""}], tools=tools)
        parser = ToolParserManager.get_tool_parser(name)(tokenizer, request.tools)  # new: it keeps state
        found = parser.extract_tool_calls(text, request)
        return [_call(call) for call in found.tool_calls] if found.tools_called else None

    return parse


def _call(call: Any) -> ToolCall:
    try:
        return ToolCall(call.function.name, json.loads(call.function.arguments))
    except ValueError:
        return ToolCall(call.function.name, None)
