"""The messages of a recorded exchange, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def content_of(message: Mapping[str, Any]) -> str:
    """A message's content as text, for people."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "" if content is None else json.dumps(content, ensure_ascii=False)
