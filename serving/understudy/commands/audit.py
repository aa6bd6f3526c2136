"""understudy audit: verify a record, prove that something is in it, make a key."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO

import click

from understudy.commands import options


@click.group()
def command() -> None:
    """Show that nobody touched the record."""


@command.command()
@click.argument("url", default="understudy-data")
@options.spool
@click.option("--public-key", help="Every signature must be by this key (hex).")
@click.option("--allow-version-1", "old", type=click.IntRange(0), default=0, metavar="N",
              help="N records of version 1, which has no chain, are known to be in it.")  # fmt: skip
def verify(url: str, spool: Path | None, public_key: str | None, old: int) -> None:
    """Go through the record at URL and name every record that was changed, dropped, reordered or inserted.

    Exit code 0: nothing was found; 1: something was.
    """
    from understudy.record.audit import audit
    from understudy.record.scanning import sources_at

    found = False
    for source in sources_at(url, spool):
        done = audit(source, source.log.name, public_key, allow_version_1=old)
        old = max(0, old - done.num_unchained)
        for finding in done.findings:
            click.echo(finding)
        found = found or bool(done.findings)
        signed = (
            f"{done.num_checkpoints} checkpoints, {done.num_segments} sealed segments, {done.num_unsigned} unsigned"
        )
        click.echo(
            f"{done.writer}: {done.num_records} records in the chain ({done.num_erased} erased), "
            f"{done.num_unchained} without; {signed}; head {done.head}"
        )
        for key in sorted(done.keys):
            click.echo(f"{done.writer}: signed by {key}" + ("" if public_key else " (is it yours? --public-key KEY)"))
    if old:
        click.echo(f"{old} of the records of version 1 are not there: dropped")
        found = True
    click.echo("something is not as its writer left it" if found else "nothing was found")
    sys.exit(int(found))


@command.command()
@click.argument("id")
@click.option("--url", default="understudy-data", show_default=True)
@options.spool
def prove(id: str, url: str, spool: Path | None) -> None:
    """Print a proof for each sealed record of the exchange ID, one JSON object a line."""
    from understudy.errors import RecordError
    from understudy.record.proof import prove as proofs
    from understudy.record.recording import names_of
    from understudy.record.scanning import sources_at

    num_found, names = 0, names_of(id, url, spool)
    for source in sources_at(url, spool):
        for proof in (proof for name in names for proof in proofs(source, name)):
            click.echo(json.dumps(proof))
            num_found += 1
    if not num_found:
        raise RecordError(f"no sealed segment has a record of {id!r}; what is still in the log is sealed later")


@command.command()
@click.argument("proof", type=click.File())
def check(proof: IO[str]) -> None:
    """Verify the proofs in PROOF (- for standard input), as anybody can who has nothing else of the record."""
    from understudy.record.proof import check as check_one

    for line in proof:
        click.echo(check_one(json.loads(line)))


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def keygen(file: Path) -> None:
    """Make an Ed25519 key for record.signing_key in FILE; print its public half, to be kept elsewhere."""
    from understudy.record.signing import make_key

    click.echo(make_key(file))
