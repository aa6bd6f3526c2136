"""The outermost ASGI app: /shadow and /metrics to our routes, everything else to vLLM's app, unmodified.

It reads a request's facts on the way in and offers its exchanges when the last byte was sent. It never answers
a request to vLLM's routes, never changes one, and never fails one.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from understudy.api.context import RequestContext, current
from understudy.lane.guard import Guard
from understudy.record.codec import well_formed
from understudy.types import NO_TAGS, RequestFacts

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
MAX_TAGS_BYTES = 4096


class Front:
    """Args: three apps, the lane's offer, its guard, and whether bodies are needed to render requests again."""

    def __init__(
        self,
        vllm_app: App,
        shadow_app: App,
        metrics_app: App,
        offer: Callable[[Any], None],
        guard: Guard,
        *,
        keep_bodies: bool,
    ) -> None:
        self._vllm_app = vllm_app
        self._shadow_app = shadow_app
        self._metrics_app = metrics_app
        self._offer = offer
        self._guard = guard
        self._keep_bodies = keep_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._vllm_app(scope, receive, send)
        elif scope["path"] == "/shadow" or scope["path"].startswith("/shadow/"):
            await self._shadow_app(scope, receive, send)
        elif scope["path"].rstrip("/") == "/metrics":  # vLLM's, and ours beside them
            await self._metrics_app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = RequestContext(RequestFacts(endpoint=scope["path"]))
        with self._guard("request facts"):
            context.facts = read_facts(scope["path"], scope["headers"])
        with self._guard("request tags"):  # apart, so that bad tags do not lose the opt-out
            context.facts = replace(context.facts, tags=read_tags(scope["headers"]))
        if self._keep_bodies and not context.facts.shadow_off:
            receive = remembering(receive, context)
        token = current.set(context)
        try:
            await self._vllm_app(scope, receive, send)
        finally:
            current.reset(token)
            context.open = False
            for witness in context.answered:
                self._offer(witness)


def remembering(receive: Receive, context: RequestContext) -> Receive:
    """Keep references to the body's chunks as they pass."""

    async def remember() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "http.request" and message.get("body"):
            context.body.append(message["body"])
        return message

    return remember


def read_facts(path: str, headers: list[tuple[bytes, bytes]]) -> RequestFacts:
    """The facts that the headers hold, but for the tags."""
    known = dict(headers)
    return RequestFacts(
        endpoint=path,
        client_request_id=_text(known.get(b"x-request-id")),
        traceparent=_text(known.get(b"traceparent")),
        shadow_off=known.get(b"x-understudy-shadow", b"").strip().lower() == b"off",
    )


def read_tags(headers: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """The tags of a request. One whose value is null is left out; half a surrogate pair becomes U+FFFD.

    Raises:
        ValueError: they are not a JSON object of at most 4096 bytes; the request goes on without them.
    """
    raw = dict(headers).get(b"x-understudy-tags")
    if raw is None:
        return NO_TAGS
    if len(raw) > MAX_TAGS_BYTES:
        raise ValueError(f"x-understudy-tags has {len(raw)} bytes, at most {MAX_TAGS_BYTES} are taken")
    tags = json.loads(raw)
    if not isinstance(tags, dict):
        raise ValueError("x-understudy-tags must be a JSON object")
    return {well_formed(str(name)): well_formed(str(value)) for name, value in tags.items() if value is not None}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
