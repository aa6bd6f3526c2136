"""The /shadow routes. Errors are OpenAI error bodies; a key of their own guards them where one is configured."""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from understudy.errors import ConfigError, NotKept, RecordError, Refused
from understudy.promotion import Promotion
from understudy.record import Feedback, parse_feedback

MAX_FEEDBACK_BYTES = 1_000_000
ACTOR_HEADER, MAX_ACTOR = b"x-understudy-actor", 100
MAX_SHOWN = 100


class Shadow(Protocol):
    """What the routes ask of the server."""

    async def status(self) -> Mapping[str, Any]:
        """What ``Server.status`` gives."""

    async def exchanges(self, any_id: str) -> list[Mapping[str, Any]]:
        """Everything recorded under an exchange id, a response id or a client's request id, newest first."""

    async def feedback(self, given: Feedback) -> bool:
        """Attach a label or a value; False where the id is not known (it is kept all the same). NotKept."""

    def waiting(self) -> list[str]:
        """The ids for which there is feedback and no exchange yet."""

    async def pause(self, actor: str) -> str:
        """Stop shadowing; by whom. Done whatever this returns: why its entry is not durable, empty where it is."""

    async def resume(self, challenger: str | None, actor: str) -> str:
        """Go on, and lift the quarantine; of one challenger where one is named. The same. KeyError: an unknown name."""

    async def promote(self, asked: Promotion, actor: str) -> Mapping[str, Any]:
        """Enter the decision for a challenger. KeyError, Refused, RecordError."""

    async def report(self) -> Mapping[str, Any]:
        """What the report is made of."""

    async def report_page(self) -> str:
        """The report as an HTML page."""


Handler = Callable[[Request], Awaitable[Response]]


def build(shadow: Shadow, key: str | None) -> Starlette:
    """The app for /shadow."""

    async def status(_: Request) -> Response:
        return JSONResponse(await shadow.status())

    async def exchanges(request: Request) -> Response:
        wanted = request.path_params["request_id"]
        found = await shadow.exchanges(wanted)
        if not found:
            return error(404, f"no exchange is recorded under {wanted!r}: not sampled, or not answered yet")
        told = json.dumps({"request_id": wanted, "exchanges": found})  # in ASCII: a body may have been no UTF-8
        return Response(told, media_type="application/json")

    async def pause(request: Request) -> Response:
        try:
            why_not = await shadow.pause(actor_of(request, key))
        except ConfigError as fault:
            return error(400, str(fault))
        return done(await shadow.status(), why_not)

    async def resume(request: Request) -> Response:
        challenger = request.query_params.get("challenger")
        try:
            why_not = await shadow.resume(challenger, actor_of(request, key))
        except ConfigError as fault:
            return error(400, str(fault))
        except KeyError:
            return error(404, f"challenger: no challenger is called {challenger!r}")
        return done(await shadow.status(), why_not)

    async def promote(request: Request) -> Response:
        body = await read_json(request)
        if isinstance(body, Response):
            return body
        try:
            asked, actor = Promotion.read(body), actor_of(request, key)
            return JSONResponse({"promoted": asked.challenger, "entry": await shadow.promote(asked, actor)})
        except ConfigError as fault:
            return error(400, str(fault))
        except KeyError:
            return error(404, f"challenger: no challenger is called {body['challenger']!r}")
        except Refused as fault:
            return error(409, str(fault))
        except RecordError as fault:
            return error(503, f"nothing is promoted without its entry in the record: {fault}")

    async def feedback(request: Request) -> Response:
        body = await read_json(request)
        if isinstance(body, Response):
            return body
        try:
            given = parse_feedback(body, time.time())
        except RecordError as fault:
            return error(400, f"feedback is request_id with label or value, name and at_unix_s: {fault}")
        try:
            return JSONResponse({"request_id": given.id, "known": await shadow.feedback(given)})
        except NotKept as fault:
            return error(503, f"this feedback is not kept, send it again later: {fault}")

    async def waiting(_: Request) -> Response:
        return JSONResponse({"pending": shadow.waiting()})

    async def report(request: Request) -> Response:
        if request.query_params.get("format") == "json":
            return JSONResponse(await shadow.report())
        return HTMLResponse(await shadow.report_page())

    routes = [
        Route("/shadow/status", guarded(status, key)),
        Route("/shadow/exchanges/{request_id:path}", guarded(exchanges, key)),
        Route("/shadow/pause", guarded(pause, key), methods=["POST"]),
        Route("/shadow/resume", guarded(resume, key), methods=["POST"]),
        Route("/shadow/promote", guarded(promote, key), methods=["POST"]),
        Route("/shadow/feedback", guarded(feedback, key), methods=["POST"]),
        Route("/shadow/feedback", guarded(waiting, key)),
        Route("/shadow/report", guarded(report, key)),
    ]
    handlers: Any = {404: _not_found, 405: _not_allowed, 500: _broken}
    return Starlette(routes=routes, exception_handlers=handlers)


def guarded(handler: Handler, key: str | None) -> Handler:
    """Require ``Authorization: Bearer KEY`` where a key is configured; without one serve this machine alone.

    ``understudy serve`` refuses to listen elsewhere without a key. With ``serve run`` and ``serve deploy`` the address
    is Ray's, whose default is every interface, and what /shadow shows are users' prompts. A browser on this machine
    sends what any page tells it to: it says which page that was. A page whose name leads to this machine (DNS
    rebinding) is of the same origin as /shadow: it is known by the name in Host, which must be this machine's own.
    """
    if key is None:
        return partial(_for_this_machine, handler)

    async def checked(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            return error(401, "/shadow needs its own key: Authorization: Bearer KEY (auth.shadow_key)")
        return await handler(request)

    return checked


def actor_of(request: Request, key: str | None) -> str:
    """Who asks, for the entry: the name that the client gives itself, how it was let in, and its address.

    Raises:
        ConfigError: the header is too long, or not to be printed.
    """
    given = next((value for name, value in request.headers.raw if name == ACTOR_HEADER), b"")
    try:
        name = given.decode().strip()
    except UnicodeDecodeError:
        name = given.decode("latin-1").strip()
    if len(name) > MAX_ACTOR or not name.isprintable():
        rule = f"must be a name of at most {MAX_ACTOR} printable characters"
        raise ConfigError(f"{ACTOR_HEADER.decode()}: {name[:MAX_ACTOR]!r} ({len(name)} characters) {rule}")
    peer = "an unknown address" if request.client is None else request.client.host
    return f"{name or 'unnamed'} ({'unauthenticated' if key is None else 'shadow key'}, from {peer})"


async def _for_this_machine(handler: Handler, request: Request) -> Response:
    if request.client is not None and not is_loopback(request.client.host):
        return error(403, "/shadow is for this machine only, unless it has a key of its own (auth.shadow_key)")
    host = request.headers.get("host", "")
    if not is_loopback(host_name(host)):
        rule = "must be localhost or a loopback address, unless /shadow has a key of its own (auth.shadow_key)"
        return error(403, f"Host: {host[:MAX_SHOWN]!r} {rule}")
    origin = request.headers.get("origin")
    if request.method == "POST" and origin is not None and urlsplit(origin).netloc != host:
        return error(403, f"/shadow takes no orders from a page of {origin}, unless it has a key (auth.shadow_key)")
    return await handler(request)


def host_name(host: str) -> str:
    """The name or address in a Host header, without the port; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return False


async def read_json(request: Request) -> dict[str, Any] | Response:
    """The body as a JSON object, or the answer that says what is wrong with it."""
    raw = bytearray()
    async for chunk in request.stream():  # and not body(): this process serves the champion, its memory counts
        raw += chunk
        if len(raw) > MAX_FEEDBACK_BYTES:
            return error(413, f"the body has more than the {MAX_FEEDBACK_BYTES} bytes that are taken")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        return error(400, f"the body is not JSON: {fault}")
    if not isinstance(body, dict):
        return error(400, "the body must be a JSON object")
    return body


def done(status: Mapping[str, Any], why_not: str) -> JSONResponse:
    """The status after something was done, and whether that stands in the record."""
    return JSONResponse({**status, "entry": {"recorded": not why_not, "detail": why_not}})


def error(status: int, message: str) -> JSONResponse:
    """An OpenAI error body."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 500: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    body = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": body}, status_code=status)


async def _not_found(request: Request, _: Exception) -> Response:
    return error(404, f"{request.url.path} is not a route of /shadow")


async def _not_allowed(request: Request, fault: Exception) -> Response:
    answer = error(405, f"{request.method} is not a method of {request.url.path}")
    answer.headers.update(getattr(fault, "headers", None) or {})  # Allow
    return answer


async def _broken(request: Request, _: Exception) -> Response:
    return error(500, f"{request.url.path} failed; the server's log says how")
