"""understudy feedback."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--to", "target", default="http://127.0.0.1:8000", show_default=True, help="A server, or a record.")
@click.option("--key", envvar="UNDERSTUDY_SHADOW_KEY", help="The key of /shadow, where the server has one.")
@click.option("--spool", default="understudy-spool", show_default=True, help="Where a record's logs are, if not in it.")
@click.option("--pending", is_flag=True, help="List the ids that wait for their exchange instead.")
def command(file: Path | None, target: str, key: str | None, spool: str, pending: bool) -> None:
    """Attach what FILE says (.jsonl or .csv: request_id, label, value, name, at_unix_s) to recorded exchanges.

    Hours or days later, by any id of an exchange; the same again changes nothing. Ids that are not known are kept, and
    count as soon as their exchange comes.
    """
    from understudy.record import given

    is_server = target.startswith(("http://", "https://"))
    if pending:
        for id in given.waiting(target, key) if is_server else given.pending(target, spool):
            click.echo(id)
        return
    if file is None:
        raise click.UsageError("give a FILE, or --pending")
    read = given.read(file)
    num, unknown = given.send(target, key, read) if is_server else given.enter(target, read, spool)
    click.echo(f"{len(read)} read, {num} {'sent' if is_server else 'new'}, {len(unknown)} for ids not known yet")
    for id in unknown[:20]:
        click.echo(f"not known yet: {id}")
