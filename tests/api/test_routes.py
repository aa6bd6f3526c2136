"""The /shadow routes over a shadow that only notes what it is asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from tests.builders import in_loop

from understudy.api.routes import MAX_FEEDBACK_BYTES, build
from understudy.errors import NotKept, RecordError, Refused
from understudy.promotion import Promotion
from understudy.record import Feedback

REPORT = {"challengers": {"b": {"compared": 3}}}
STATUS = {"phase": "shadowing", "counts": {"sampled": 3}}


@dataclass
class FakeShadow:
    """Knows the exchanges in ``known``."""

    known: Mapping[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    fault: Exception | None = None
    actors: list[str] = field(default_factory=list)
    why_not: str = ""

    async def status(self) -> Mapping[str, Any]:
        self.asked.append("status")
        if self.fault is not None:
            raise self.fault
        return STATUS

    async def exchanges(self, any_id: str) -> list[Mapping[str, Any]]:
        self.asked.append(("exchanges", any_id))
        return self.known.get(any_id, [])

    async def feedback(self, given: Feedback) -> bool:
        if self.fault is not None:
            raise self.fault
        self.asked.append(("feedback", given.id, given.label, given.value, given.name))
        return given.id in self.known

    def waiting(self) -> list[str]:
        return ["nobody"]

    async def pause(self, actor: str) -> str:
        self.asked.append("pause")
        self.actors.append(actor)
        return self.why_not

    async def resume(self, challenger: str | None, actor: str) -> str:
        if challenger == "nobody":
            raise KeyError(challenger)
        self.asked.append("resume" if challenger is None else ("resume", challenger))
        self.actors.append(actor)
        return self.why_not

    async def promote(self, asked: Promotion, actor: str) -> Mapping[str, Any]:
        if asked.challenger == "nobody":
            raise KeyError(asked.challenger)
        if self.fault is not None:
            raise self.fault
        self.asked.append(asked)
        self.actors.append(actor)
        return {"challenger": asked.challenger}

    async def report(self) -> Mapping[str, Any]:
        self.asked.append("report")
        return REPORT

    async def report_page(self) -> str:
        self.asked.append("report page")
        return "<h1>Bericht für b</h1>"


async def ask(
    method: str,
    path: str,
    shadow: FakeShadow | None = None,
    *,
    key: str | None = None,
    peer: str = "127.0.0.1",
    server: str = "http://localhost:8000",
    **more: Any,
) -> httpx.Response:
    app = build(shadow or FakeShadow(), key)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(peer, 4000))
    async with httpx.AsyncClient(transport=transport, base_url=server) as client:
        return await client.request(method, path, **more)


def openai_error(response: httpx.Response, status: int) -> str:
    """Check the form of an OpenAI error body; gives its message."""
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["code"] == status
    assert isinstance(body["type"], str)
    return str(body["message"])


ROUTES = [
    ("GET", "/shadow/status"),
    ("GET", "/shadow/exchanges/x"),
    ("GET", "/shadow/report"),
    ("POST", "/shadow/pause"),
    ("POST", "/shadow/resume"),
    ("POST", "/shadow/feedback"),
    ("POST", "/shadow/promote"),
]


@in_loop
async def test_status() -> None:
    response = await ask("GET", "/shadow/status")
    assert response.status_code == 200
    assert response.json() == STATUS


@pytest.mark.parametrize("action", ["pause", "resume"])
@in_loop
async def test_pause_and_resume_act_and_answer_with_the_status(action: str) -> None:
    shadow = FakeShadow()
    response = await ask("POST", f"/shadow/{action}", shadow)
    assert shadow.asked == [action, "status"]
    assert response.json() == STATUS | {"entry": {"recorded": True, "detail": ""}}
    shadow.why_not = "the disk is full"
    response = await ask("POST", f"/shadow/{action}", shadow)
    assert response.status_code == 200
    assert response.json()["entry"] == {"recorded": False, "detail": "the disk is full"}


@in_loop
async def test_resume_of_one_challenger() -> None:
    shadow = FakeShadow()
    assert (await ask("POST", "/shadow/resume?challenger=b", shadow)).status_code == 200
    assert shadow.asked == [("resume", "b"), "status"]
    assert "'nobody'" in openai_error(await ask("POST", "/shadow/resume?challenger=nobody", shadow), 404)


@pytest.mark.parametrize(
    ("headers", "key", "actor"),
    [
        ({}, None, "unnamed (unauthenticated, from 127.0.0.1)"),
        ({"x-understudy-actor": "ann@laptop"}, "k", "ann@laptop (shadow key, from 127.0.0.1)"),
        ({"x-understudy-actor": "Zoë".encode()}, None, "Zoë (unauthenticated, from 127.0.0.1)"),
        ({"x-understudy-actor": "Zoë".encode("latin-1")}, None, "Zoë (unauthenticated, from 127.0.0.1)"),
    ],
)
@in_loop
async def test_who_asks_is_handed_on(headers: dict[str, Any], key: str | None, actor: str) -> None:
    shadow = FakeShadow()
    headers = headers | ({} if key is None else {"authorization": f"Bearer {key}"})
    for route in ("pause", "resume", "promote"):
        done = await ask("POST", f"/shadow/{route}", shadow, key=key, headers=headers, json={"challenger": "b"})
        assert done.status_code == 200
    assert shadow.actors == [actor] * 3


@pytest.mark.parametrize("name", ["x" * 101, "a\tb", "\u202egnp"])
@pytest.mark.parametrize("route", ["pause", "resume", "promote"])
@in_loop
async def test_a_name_that_cannot_be_printed_is_refused_and_nothing_is_done(name: str, route: str) -> None:
    shadow, headers = FakeShadow(), {"x-understudy-actor": name.encode()}
    done = await ask("POST", f"/shadow/{route}", shadow, headers=headers, json={"challenger": "b"})
    assert "x-understudy-actor" in openai_error(done, 400)
    assert "at most 100 printable characters" in openai_error(done, 400)
    assert shadow.asked == []


@in_loop
async def test_a_promotion_and_its_refusals() -> None:
    shadow = FakeShadow()
    body = {"challenger": "b", "despite": "we know better", "config_sha256": "ab"}
    done = await ask("POST", "/shadow/promote", shadow, json=body)
    assert done.json() == {"promoted": "b", "entry": {"challenger": "b"}}
    assert shadow.asked == [Promotion("b", "we know better", "ab")]
    for wrong, said in (
        ({}, "challenger: None must be the name"),
        ({"challenger": "b", "despit": "x"}, "despit: unknown key"),
        ({"challenger": "b", "despite": " "}, "despite: must be a reason of 1 to 1000"),
        ({"challenger": "b", "despite": "x" * 1001}, "despite: must be a reason of 1 to 1000"),
        ({"challenger": "b", "config_sha256": 5}, "config_sha256: 5 must be text"),
    ):
        assert said in openai_error(await ask("POST", "/shadow/promote", json=wrong), 400)
    assert "'nobody'" in openai_error(await ask("POST", "/shadow/promote", json={"challenger": "nobody"}), 404)
    for fault, status in ((Refused("b is NO-GO now"), 409), (RecordError("the disk is full"), 503)):
        refused = await ask("POST", "/shadow/promote", FakeShadow(fault=fault), json={"challenger": "b"})
        assert str(fault) in openai_error(refused, status)


@in_loop
async def test_half_a_surrogate_pair_is_entered_as_u_fffd_or_named() -> None:
    """JSON can say it, UTF-8 cannot: the entry would be written, and the answer to it be a 500."""
    shadow = FakeShadow()
    for name, wanted in (
        ("despite", Promotion("b", "we\ufffd")),
        ("config_sha256", Promotion("b", None, "we\ufffd")),
    ):
        body = json.dumps({"challenger": "b", name: "we\ud800"})
        assert (await ask("POST", "/shadow/promote", shadow, content=body)).status_code == 200
        assert shadow.asked.pop() == wanted
    unknown = await ask("POST", "/shadow/promote", shadow, content=json.dumps({"challenger": "b", "we\ud800": 1}))
    assert "we\ufffd: unknown key" in openai_error(unknown, 400)
    nobody = await ask("POST", "/shadow/promote", shadow, content=json.dumps({"challenger": "we\ud800"}))
    assert nobody.json() == {"promoted": "we\ufffd", "entry": {"challenger": "we\ufffd"}}


@pytest.mark.parametrize("wanted", ["x-1", "chatcmpl-1-0", "with/slash"])
@in_loop
async def test_exchanges(wanted: str) -> None:
    shadow = FakeShadow({wanted: [{"exchange_id": wanted}]})
    response = await ask("GET", f"/shadow/exchanges/{wanted}", shadow)
    assert response.status_code == 200
    assert response.json() == {"request_id": wanted, "exchanges": [{"exchange_id": wanted}]}


@in_loop
async def test_an_exchange_whose_body_was_no_utf_8() -> None:
    exchange = {"exchange_id": "x", "body": '{"messages": "\udcff"}'}
    response = await ask("GET", "/shadow/exchanges/x", FakeShadow({"x": [exchange]}))
    assert response.json()["exchanges"] == [exchange]


@in_loop
async def test_an_exchange_that_is_not_known() -> None:
    assert "'nobody'" in openai_error(await ask("GET", "/shadow/exchanges/nobody"), 404)


@pytest.mark.parametrize("known", [True, False])
@in_loop
async def test_feedback(known: bool) -> None:
    shadow = FakeShadow({"x": []} if known else {})
    response = await ask("POST", "/shadow/feedback", shadow, json={"request_id": "x", "label": "refund"})
    assert response.json() == {"request_id": "x", "known": known}
    assert shadow.asked == [("feedback", "x", "refund", None, "")]
    worth = {"request_id": "x", "value": 12, "name": "revenue_usd", "at_unix_s": 5}
    await ask("POST", "/shadow/feedback", shadow, json=worth)
    assert shadow.asked[1:] == [("feedback", "x", "", 12.0, "revenue_usd")]
    assert (await ask("GET", "/shadow/feedback", shadow)).json() == {"pending": ["nobody"]}


@in_loop
async def test_feedback_that_cannot_be_kept_is_to_be_sent_again() -> None:
    shadow = FakeShadow(fault=NotKept("nothing is recorded: the disk is full"))
    response = await ask("POST", "/shadow/feedback", shadow, json={"request_id": "x", "label": "refund"})
    assert "send it again later: nothing is recorded: the disk is full" in openai_error(response, 503)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "request_id: must be text"),
        (b'{"request_id": 5, "label": "refund"}', "request_id: must be text"),
        (b'{"request_id": "x"}', "label or value: one of them must be there"),
        (b'{"request_id": "x", "label": null}', "label or value"),
        (b'{"request_id": "x", "label": " "}', "label: ' ' must be text that is not empty"),
        (b'{"request_id": "x", "label": ["refund"]}', "label: ['refund'] must be text"),
        (b'{"request_id": "x", "value": true}', "value: True must be a finite number"),
        (b'{"request_id": "x", "value": "NaN"}', "value: 'NaN' must be a finite number"),
        (b'{"request_id": "x", "label": "a", "lable": "b"}', "'lable' is not a field of feedback"),
    ],
)
@in_loop
async def test_feedback_that_is_wrong_is_refused_and_not_kept(content: bytes, says: str) -> None:
    shadow = FakeShadow()
    response = await ask("POST", "/shadow/feedback", shadow, content=content)
    assert says in openai_error(response, 400)
    assert shadow.asked == []


@in_loop
async def test_a_body_that_is_too_large_is_refused_before_all_of_it_is_read() -> None:
    read = [0]

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            read[0] += 1
            yield b" " * 100_000

    response = await ask("POST", "/shadow/feedback", content=endless())
    assert str(MAX_FEEDBACK_BYTES) in openai_error(response, 413)
    assert read[0] < 20


@in_loop
async def test_the_largest_body_is_taken() -> None:
    content = b'{"request_id": "x", "label": "' + b"y" * (MAX_FEEDBACK_BYTES - 32) + b'"}'
    assert len(content) == MAX_FEEDBACK_BYTES
    assert (await ask("POST", "/shadow/feedback", content=content)).status_code == 200


@in_loop
async def test_the_report_is_a_page() -> None:
    response = await ask("GET", "/shadow/report")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == "<h1>Bericht für b</h1>"


@in_loop
async def test_the_report_is_json_where_that_is_asked_for() -> None:
    response = await ask("GET", "/shadow/report?format=json")
    assert response.status_code == 200
    assert response.json() == REPORT


@pytest.mark.parametrize(("method", "path"), ROUTES)
@in_loop
async def test_without_a_key_in_the_configuration_none_is_asked_for(method: str, path: str) -> None:
    assert (await ask(method, path)).status_code != 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "given", [None, "", "Bearer ", "Bearer wrong", "Bearer secre", "Bearer secrets", "Basic secret"]
)
@in_loop
async def test_a_missing_or_wrong_key_is_refused_and_nothing_is_done(method: str, path: str, given: str | None) -> None:
    shadow = FakeShadow({"x": [{}]})
    headers = {} if given is None else {"authorization": given}
    response = await ask(method, path, shadow, key="secret", headers=headers)
    message = openai_error(response, 401)
    assert "secret" not in message
    assert shadow.asked == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
@in_loop
async def test_the_right_key_opens_every_route(method: str, path: str) -> None:
    shadow = FakeShadow({"x": [{}]})
    content = b'{"challenger": "b"}' if path.endswith("promote") else b'{"request_id": "x", "label": "y"}'
    headers = {"authorization": "Bearer secret"}
    response = await ask(method, path, shadow, key="secret", headers=headers, content=content)
    assert response.status_code == 200
    assert shadow.asked


@pytest.mark.parametrize("path", ["/shadow", "/shadow/", "/shadow/nothing", "/shadow/status/x"])
@in_loop
async def test_an_unknown_route(path: str) -> None:
    message = openai_error(await ask("GET", path, follow_redirects=True), 404)
    assert "is not a route of /shadow" in message


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/shadow/status"),
        ("GET", "/shadow/pause"),
        ("GET", "/shadow/resume"),
        ("PUT", "/shadow/feedback"),
    ],
)
@in_loop
async def test_a_wrong_method_is_refused_with_the_right_ones(method: str, path: str) -> None:
    shadow = FakeShadow()
    response = await ask(method, path, shadow)
    assert method in openai_error(response, 405)
    assert response.headers["allow"]
    assert shadow.asked == []


@in_loop
async def test_a_fault_inside_is_an_error_body_too_and_shows_nothing_of_the_inside() -> None:
    response = await ask("GET", "/shadow/status", FakeShadow(fault=RuntimeError("the inside")))
    assert "the inside" not in openai_error(response, 500)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@in_loop
async def test_without_a_key_only_this_machine_is_served(method: str, path: str) -> None:
    """Ray Serve's own default is to listen on every interface."""
    shadow = FakeShadow()
    for peer in ("10.1.2.3", "2001:db8::1", "testclient"):
        assert "auth.shadow_key" in openai_error(await ask(method, path, shadow, peer=peer), 403)
    assert not shadow.asked
    with_key = {"authorization": "Bearer secret"}
    assert (await ask(method, path, shadow, peer="10.1.2.3", key="secret", headers=with_key)).status_code != 403
    for peer in ("::1", "::ffff:127.0.0.1"):
        assert (await ask(method, path, shadow, peer=peer)).status_code != 403


@pytest.mark.parametrize(("method", "path"), ROUTES)
@in_loop
async def test_without_a_key_a_name_that_only_leads_to_this_machine_is_not_served(method: str, path: str) -> None:
    """DNS rebinding: a page's own name, which now leads here, is of one origin with /shadow to the browser."""
    shadow = FakeShadow()
    for host in ("evil.example:8000", "localhost.evil.example", "10.1.2.3:8000", "[::1", ""):
        headers = {"host": host, "origin": f"http://{host}"}
        assert repr(host) in openai_error(await ask(method, path, shadow, headers=headers), 403)
    assert not shadow.asked
    with_key = {"authorization": "Bearer secret", "host": "shadow.example"}
    assert (await ask(method, path, shadow, key="secret", headers=with_key)).status_code != 403
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::ffff:127.0.0.1]"):
        assert (await ask(method, path, shadow, server=f"http://{host}")).status_code != 403


@in_loop
async def test_without_a_key_another_sites_page_gives_no_orders() -> None:
    shadow = FakeShadow()
    for origin in ("https://example.com", "null", "http://localhost:81"):
        assert origin in openai_error(await ask("POST", "/shadow/pause", shadow, headers={"origin": origin}), 403)
    assert not shadow.asked
    assert (await ask("POST", "/shadow/pause", shadow, headers={"origin": "http://localhost:8000"})).status_code == 200
