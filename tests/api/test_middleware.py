"""The front: /shadow goes to our routes, everything else through untouched; what was answered is offered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.builders import in_loop

from understudy.api.context import RequestContext, current
from understudy.api.middleware import MAX_TAGS_BYTES, Front, Receive, Scope, Send, read_tags
from understudy.lane.guard import Guard
from understudy.types import RequestFacts

Message = dict[str, Any]
BODY_IN = [b'{"messages": [', b'{"role": "user"}', b"]}"]


@dataclass
class World:
    """Both apps, the client and the lane around one Front. ``happened`` is what they did, in order."""

    keep_bodies: bool = False
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    answers: Callable[[World, Scope, Receive, Send], Awaitable[None]] | None = None
    happened: list[Any] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    context: RequestContext | None = None
    guard: Guard = field(default_factory=Guard)

    async def vllm_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.context = current.get()
        self.happened.append(("vllm", scope["type"]))
        if self.answers is not None:
            await self.answers(self, scope, receive, send)

    async def shadow_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert current.get() is None
        self.happened.append(("shadow", scope["path"]))

    async def metrics_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert current.get() is None
        self.happened.append(("metrics", scope["path"]))

    async def send(self, message: Any) -> None:
        self.happened.append(message["type"])
        self.sent.append(dict(message))

    def front(self) -> Front:
        return Front(
            self.vllm_app,
            self.shadow_app,
            self.metrics_app,
            lambda witness: self.happened.append(("offered", witness)),
            self.guard,
            keep_bodies=self.keep_bodies,
        )

    async def request(self, path: str = "/v1/chat/completions", kind: str = "http") -> None:
        chunks = list(BODY_IN)

        async def receive() -> Message:
            more = len(chunks) > 1
            return {"type": "http.request", "body": chunks.pop(0), "more_body": more}

        await self.front()({"type": kind, "path": path, "headers": self.headers}, receive, self.send)

    async def facts(self) -> RequestFacts:
        await self.request()
        assert self.context is not None
        return self.context.facts


async def read_all(receive: Receive) -> list[bytes]:
    chunks, more = [], True
    while more:
        message = await receive()
        chunks.append(message["body"])
        more = message["more_body"]
    return chunks


async def answer_twice(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    """Read the request, hand two exchanges over as the fork does, and send an answer."""
    await read_all(receive)
    context = current.get()
    assert context is not None
    assert context.open
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x/y")]})
    context.answered.append("first")
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    context.answered.append("second")
    await send({"type": "http.response.body", "body": b"two", "more_body": False})


@pytest.mark.parametrize("path", ["/shadow", "/shadow/", "/shadow/status", "/shadow/exchanges/a/b"])
@in_loop
async def test_shadow_paths_go_to_our_routes(path: str) -> None:
    world = World()
    await world.request(path)
    assert world.happened == [("shadow", path)]


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
@in_loop
async def test_metrics_are_ours_with_vllms_in_them(path: str) -> None:
    world = World()
    await world.request(path)
    assert world.happened == [("metrics", path)]


@pytest.mark.parametrize("path", ["/", "/shadowfoo", "/shadow-status", "/v1/shadow/status", "/Shadow", "/metricsfoo"])
@in_loop
async def test_everything_else_goes_to_vllm(path: str) -> None:
    world = World()
    await world.request(path)
    assert world.happened == [("vllm", "http")]
    assert world.context is not None
    assert world.context.facts.endpoint == path


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
@in_loop
async def test_what_is_not_http_passes_straight_through(kind: str) -> None:
    world = World()
    given: list[Any] = []

    async def note(_: World, *call: Any) -> None:
        given.extend(call)

    world.answers = note
    scope: Scope = {"type": kind, "path": "/shadow/status"}  # a lifespan scope has not even headers

    async def receive() -> Message:
        return {}

    await world.front()(scope, receive, world.send)
    assert world.context is None
    assert given[0] is scope
    assert given[1] is receive
    assert given[2] == world.send


@in_loop
async def test_exchanges_are_offered_after_the_last_byte_was_sent_in_their_order() -> None:
    world = World(answers=answer_twice)
    await world.request()
    assert world.happened == [
        ("vllm", "http"),
        "http.response.start",
        "http.response.body",
        "http.response.body",
        ("offered", "first"),
        ("offered", "second"),
    ]
    assert world.context is not None
    assert not world.context.open  # what comes later goes to the lane directly


@in_loop
async def test_a_request_without_exchanges_offers_nothing() -> None:
    world = World()
    await world.request("/health")
    assert world.happened == [("vllm", "http")]


@in_loop
async def test_exchanges_are_offered_when_the_app_raises_and_the_error_is_unchanged() -> None:
    fault = RuntimeError("x")

    async def breaks(world: World, *call: Any) -> None:
        await answer_twice(world, *call)
        raise fault

    world = World(answers=breaks)
    with pytest.raises(RuntimeError) as raised:
        await world.request()
    assert raised.value is fault
    assert world.happened[-2:] == [("offered", "first"), ("offered", "second")]
    assert current.get() is None


@in_loop
async def test_exchanges_are_offered_when_the_request_is_cancelled() -> None:
    reached = asyncio.Event()

    async def hangs(world: World, *call: Any) -> None:
        await answer_twice(world, *call)
        reached.set()
        await asyncio.Event().wait()

    world = World(answers=hangs)
    task = asyncio.create_task(world.request())
    await reached.wait()
    assert ("offered", "first") not in world.happened
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.happened[-2:] == [("offered", "first"), ("offered", "second")]


@in_loop
async def test_requests_side_by_side_have_contexts_of_their_own() -> None:
    worlds = [World(answers=answer_twice) for _ in range(5)]
    await asyncio.gather(*(world.request() for world in worlds))
    assert len({id(world.context) for world in worlds}) == 5
    assert all(world.happened.count(("offered", "first")) == 1 for world in worlds)
    assert current.get() is None


@pytest.mark.parametrize("keep_bodies", [False, True])
@in_loop
async def test_request_and_answer_are_the_same_bytes_with_and_without_the_front(keep_bodies: bool) -> None:
    read: list[list[bytes]] = []

    async def echo(_: World, scope: Scope, receive: Receive, send: Send) -> None:
        chunks = await read_all(receive)
        read.append(chunks)
        await send({"type": "http.response.start", "status": 207, "headers": list(scope["headers"])})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    headers = [
        (b"host", b"h"),
        (b"x-understudy-tags", b'{"session": "s"}'),
        (b"x-understudy-tags", b"again"),
        (b"x-understudy-shadow", b"off"),
    ]
    fronted, plain = World(keep_bodies, headers, echo), World(headers=headers, answers=echo)
    await fronted.request()
    plain.front = lambda: plain.vllm_app  # type: ignore[method-assign,assignment,return-value]
    await plain.request()
    assert fronted.sent == plain.sent
    assert read == [BODY_IN, BODY_IN]
    assert all(mine is theirs for mine, theirs in zip(read[0], BODY_IN, strict=True))


@in_loop
async def test_scope_receive_and_send_are_handed_on_as_they_are() -> None:
    given: list[Any] = []

    async def note(_: World, *call: Any) -> None:
        given.extend(call)

    world = World(answers=note)
    scope: Scope = {"type": "http", "path": "/v1/completions", "headers": []}
    before = dict(scope)

    async def receive() -> Message:
        return {}

    await world.front()(scope, receive, world.send)
    assert given[0] is scope
    assert scope == before
    assert given[1] is receive
    assert given[2] == world.send


@in_loop
async def test_bodies_are_kept_by_reference_where_they_are_needed() -> None:
    world = World(keep_bodies=True, answers=answer_twice)
    await world.request()
    assert world.context is not None
    assert [id(chunk) for chunk in world.context.body] == [id(chunk) for chunk in BODY_IN]
    assert world.context.facts.body is None  # joined only off the answer's path
    assert world.context.facts_with_body().body == b"".join(BODY_IN)


@pytest.mark.parametrize(("keep_bodies", "headers"), [(False, []), (True, [(b"x-understudy-shadow", b"off")])])
@in_loop
async def test_bodies_are_not_kept_where_nobody_will_read_them(
    keep_bodies: bool, headers: list[tuple[bytes, bytes]]
) -> None:
    world = World(keep_bodies, headers, answer_twice)
    await world.request()
    assert world.context is not None
    assert world.context.body == []
    assert world.context.facts_with_body().body is None


@in_loop
async def test_facts_without_headers() -> None:
    facts = await World().facts()
    assert facts == RequestFacts(endpoint="/v1/chat/completions")
    assert facts.session is None


@pytest.mark.parametrize(
    ("value", "off"),
    [(b"off", True), (b" OFF ", True), (b"Off", True), (b"on", False), (b"", False), (b"offside", False)],
)
@in_loop
async def test_the_opt_out_header(value: bytes, off: bool) -> None:
    assert (await World(headers=[(b"x-understudy-shadow", value)]).facts()).shadow_off is off


@in_loop
async def test_the_clients_request_id() -> None:
    assert (await World(headers=[(b"x-request-id", b"r-1\xe9")]).facts()).client_request_id == "r-1é"


@in_loop
async def test_tags() -> None:
    raw = json.dumps({"session": "s-1", "tenant": "Zoë", "n": 3, "deep": {"a": 1}, "gone": None}).encode()
    facts = await World(headers=[(b"x-understudy-tags", raw)]).facts()
    assert facts.tags == {"session": "s-1", "tenant": "Zoë", "n": "3", "deep": "{'a': 1}"}
    assert facts.session == "s-1"


@in_loop
async def test_a_session_that_is_null_is_no_session() -> None:
    """It would put all requests of such a client into one statistical unit."""
    assert (await World(headers=[(b"x-understudy-tags", b'{"session": null}')]).facts()).session is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b"[" * MAX_TAGS_BYTES,
        b'{"a": "' + b"x" * MAX_TAGS_BYTES + b'"}',
    ],
)
@in_loop
async def test_tags_that_are_wrong_fail_nothing_and_lose_nothing_else(raw: bytes) -> None:
    headers = [(b"x-understudy-tags", raw), (b"x-understudy-shadow", b"off"), (b"x-request-id", b"r")]
    world = World(headers=headers, answers=answer_twice)
    facts = await world.facts()
    assert facts.tags == {}
    assert facts.shadow_off  # who opts out is not shadowed because of a typo in another header
    assert facts.client_request_id == "r"
    assert len(world.sent) == 3
    assert world.guard.swallowed == {"request tags": 1}


@in_loop
async def test_tags_of_exactly_the_limit_are_taken() -> None:
    raw = b'{"a": "' + b"x" * (MAX_TAGS_BYTES - 9) + b'"}'
    assert len(raw) == MAX_TAGS_BYTES
    assert len((await World(headers=[(b"x-understudy-tags", raw)]).facts()).tags["a"]) == MAX_TAGS_BYTES - 9


@in_loop
async def test_headers_that_cannot_be_read_fail_nothing() -> None:
    world = World(answers=answer_twice)
    world.headers = [(b"x-request-id",)]  # type: ignore[list-item]
    await world.request()
    assert len(world.sent) == 3
    assert world.guard.swallowed == {"request facts": 1, "request tags": 1}


def test_half_a_surrogate_pair_in_a_tag_is_no_text() -> None:
    tags = read_tags([(b"x-understudy-tags", b'{"session": "\\ud800", "\\udfff": "\\ud83d\\ude00"}')])
    assert tags == {"session": "\ufffd", "\ufffd": "\U0001f600"}
