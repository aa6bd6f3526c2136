"""understudy shadow: pause and resume, of a running server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from understudy.commands import options


@click.group()
def command() -> None:
    """Pause and resume the shadow of a running server."""


def _of_a_server(function: Callable[..., None]) -> Callable[..., None]:
    url = click.argument("url", default="http://127.0.0.1:8000")
    key = click.option("--key", envvar="UNDERSTUDY_SHADOW_KEY", help="The key of /shadow, where the server has one.")
    return url(key(options.by(function)))


@command.command()
@_of_a_server
def pause(url: str, key: str | None, by: str) -> None:
    """Stop everything of the shadow at once: the kill switch."""
    _show(_post(url, "pause", key, by))


@command.command()
@_of_a_server
@click.option("--challenger", help="Only lift this challenger's quarantine; a pause goes on.")
def resume(url: str, key: str | None, by: str, challenger: str | None) -> None:
    """Shadow again, and lift the quarantine. Who was in it comes back when the replica starts the next time."""
    _show(_post(url, "resume", key, by, challenger))


def _post(url: str, action: str, key: str | None, by: str, challenger: str | None = None) -> dict[str, Any]:
    import httpx

    from understudy.errors import UnderstudyError

    headers = options.headers(key, by)
    parameters = {} if challenger is None else {"challenger": challenger}
    try:
        answer = httpx.post(f"{url}/shadow/{action}", params=parameters, headers=headers, timeout=60)
    except httpx.HTTPError as fault:
        raise UnderstudyError(f"{url} cannot be asked: {fault}") from fault
    if answer.status_code != 200:
        raise UnderstudyError(f"{url}/shadow/{action} answers {answer.status_code}: {answer.text[:200]}")
    status: dict[str, Any] = answer.json()
    return status


def _show(status: dict[str, Any]) -> None:
    click.echo(f"phase: {status['phase']}")
    for challenger in status["challengers"]:
        state = "ready" if challenger["ready"] else f"not ready: {challenger['detail']}"
        click.echo(f"  {challenger['name']}: {state}")
    entry = status.get("entry", {"recorded": True})
    if not entry["recorded"]:
        click.echo(f"Done, and not in the record yet: {entry['detail']}", err=True)
