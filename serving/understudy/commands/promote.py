"""understudy promote: enter a decision for a challenger, and make the configuration that follows from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from understudy.commands import options


@click.command()
@click.argument("challenger")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The running server.")
@click.option("--key", envvar="UNDERSTUDY_SHADOW_KEY", help="The key of /shadow, where the server has one.")
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration it was started with."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the new configuration goes.")
@click.option("--despite", metavar="REASON", help="Promote without a GO; the reason stands in the record.")
@options.by
def command(
    challenger: str, url: str, key: str | None, config: Path | None, out: Path | None, despite: str | None, by: str
) -> None:
    """Decide for CHALLENGER: refused unless its verdict is GO now.

    The decision is entered into the server's record. With --config the configuration is printed (or written to --out)
    in which CHALLENGER is the champion and the champion its challenger. The running server goes on as it is: start it
    anew with that configuration; the one from before leads back.

    Exit code 0: it is entered; 1: it is refused, or the server cannot be asked; 2: a configuration that cannot be.
    """
    from understudy.config import parse, read_yaml
    from understudy.errors import ConfigError
    from understudy.identity import config_digest
    from understudy.promotion import swapped

    if out is not None and config is None:
        raise click.UsageError("--out needs --config: the configuration that the server was started with")
    if out is not None and out.resolve() == (config or out).resolve():
        raise ConfigError(f"--out: {out} is --config, which leads back: name another file")
    asked: dict[str, Any] = {"challenger": challenger, "despite": despite}
    text = ""
    if config is not None:
        raw = read_yaml(config)
        asked["config_sha256"] = config_digest(parse(raw))
        text = _yaml(swapped(raw, challenger), config, challenger)
    with _ready(text, out):
        entry = _post(url, key, by, asked)
    despite_what = "" if entry["verdict"]["verdict"] == "GO" else f", despite {entry['verdict']['verdict']}"
    say = _say(text, out)
    say(f"{challenger} is promoted{despite_what}; the entry is in the record of rollout {entry['rollout']}.")
    say(f"Nothing was swapped: the server at {url} goes on with {entry['champion']}.")
    if config is None:
        say("Give --config, what the server was started with, to get the configuration to start it with now.")
    elif out is not None:
        say(f"Start it anew with {out}; {config} leads back.")


def _yaml(raw: dict[str, Any], config: Path, challenger: str) -> str:
    import yaml

    head = f"# {config} with {challenger} as the champion (understudy promote). Comments and order are not kept.\n"
    return head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


@contextmanager
def _ready(text: str, out: Path | None) -> Iterator[None]:
    """Write the configuration beside ``out`` before the body, and move it there after: an entry is not taken back.

    For its owner alone (0600): it may have keys in it. Where the body raises, ``out`` is as it was.

    Raises:
        ConfigError: it cannot be written; the body has not run.
        UnderstudyError: it cannot be moved; the message says where it is.
    """
    from understudy.errors import ConfigError, UnderstudyError
    from understudy.record.store import open_private

    if out is None:
        yield
        return
    if out.exists() and not out.is_file():  # such as /dev/stdout: nothing can be beside it
        yield
        out.write_text(text, encoding="utf-8")
        return
    target = out.resolve()
    fresh = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        try:
            with open_private(fresh) as file:
                file.write(text)
        except OSError as fault:
            raise ConfigError(f"--out: {out} cannot be written, and nothing is entered: {fault}") from fault
        yield
    except BaseException:
        with suppress(OSError):  # it may not be there
            fresh.unlink()
        raise
    try:
        fresh.replace(target)
    except OSError as fault:
        raise UnderstudyError(f"it is entered, and --out: {out} cannot be written ({fault}): {fresh} is it") from fault


def _say(text: str, out: Path | None) -> Any:
    """Print the configuration where it goes to no file; what else there is to say goes to stderr then."""
    if text and out is None:
        click.echo(text, nl=False)
    return lambda words: click.echo(words, file=sys.stderr if text and out is None else None)


def _post(url: str, key: str | None, by: str, asked: dict[str, Any]) -> dict[str, Any]:
    import httpx

    from understudy.errors import Refused, UnderstudyError

    try:
        answer = httpx.post(f"{url}/shadow/promote", json=asked, headers=options.headers(key, by), timeout=60)
    except httpx.HTTPError as fault:
        raise UnderstudyError(f"{url} cannot be asked: {fault}") from fault
    if answer.status_code == 409:
        raise Refused(answer.json()["error"]["message"])
    if answer.status_code != 200:
        raise UnderstudyError(f"{url}/shadow/promote answers {answer.status_code}: {answer.text[:500]}")
    entry: dict[str, Any] = answer.json()["entry"]
    return entry
