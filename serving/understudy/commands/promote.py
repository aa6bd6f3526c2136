"""understudy promote: enter a decision for a challenger, and make the configuration that follows from it."""

from __future__ import annotations

import sys
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


def _say(text: str, out: Path | None) -> Any:
    """Write the configuration; what else there is to say goes to stderr where that is on stdout."""
    from understudy.record.store import open_private

    if out is not None:
        with open_private(out) as file:  # it may have keys in it
            file.write(text)
    elif text:
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
