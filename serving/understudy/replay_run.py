"""``understudy replay``: new challengers over recorded exchanges, as if they had shadowed them.

The champion is not loaded. Each exchange has the prompt's token ids, the parameters as resolved, the champion's answer
and the labels that were recorded; a challenger with another tokenizer renders the recorded request by its own template.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from understudy import offline
from understudy.archive import from_view
from understudy.browse.champion import champion_in
from understudy.config import parse
from understudy.errors import ConfigError, RecordError, Unsupported
from understudy.judge.base import NOT_EXCHANGES
from understudy.record import scan
from understudy.record.labels import feedback_of
from understudy.types import Ending, Exchange, Floor, State
from understudy.variants import with_gates, with_models

Restore = Callable[[Mapping[str, Any]], Any]
RESENDS = frozenset({State.EXPIRED})
"""What is cancelled here was cancelled by its user, and would be again."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded exchange as the lane takes it (lane.Offered)."""

    exchange: Exchange
    unsupported: None = None
    shadow_off: bool = False

    @property
    def exchange_id(self) -> str:
        """The recorded one, so that labels and sessions go on to apply."""
        return self.exchange.exchange_id

    @property
    def held_bytes(self) -> int:
        """Who replays waits for room, and offers one after the other."""
        return 0

    def complete(self) -> Exchange:
        """It is complete."""
        return self.exchange


def run(
    record: str,
    *,
    since: float | None,
    until: float | None,
    out: Path,
    concurrency: int,
    gate: bool,
    label_pattern: str | None,
    spool: Path | None = None,
    **models: Any,
) -> int:
    """Everything that ``understudy replay`` does; returns the exit code.

    Raises:
        ConfigError: options or the configuration are wrong; no engine was started.
        RecordError: there is no record.
    """
    console = offline.wide_console()
    recorded = None if models["champion"] is not None else champion_in(record, spool)
    raw = with_gates(with_models(**models, recorded=recorded), label_pattern)
    only = recorded["name"] if recorded is not None and raw["champion"] == recorded else None
    raw = offline.offline_config(raw, out=out, concurrency=concurrency, has_champion=False)
    config = parse(raw)
    if config.record.folder.resolve() == Path(record.removeprefix("file://")).resolve():
        raise ConfigError(f"--out: {str(out)!r} must not hold the record that is replayed")
    offline.take_folder(out, {"config": raw, "record": record, "since": since, "until": until})
    done = finished(out / "record", [model.name for model in config.challengers])
    total = sum(view["exchange_id"] not in done for view in scan(record, since=since, until=until, spool=spool))
    if not total and not done:
        raise RecordError(f"{record}: has no exchange to replay")
    views = (view for view in scan(record, since=since, until=until, spool=spool) if view["exchange_id"] not in done)
    return asyncio.run(_run(raw, views, total, only, out=out, concurrency=concurrency, gate=gate, console=console))


async def _run(
    raw: Mapping[str, Any],
    views: Iterator[Mapping[str, Any]],
    total: int,
    only: str | None,
    *,
    out: Path,
    concurrency: int,
    gate: bool,
    console: Console,
) -> int:
    async with offline.started(raw, serve=False, resends=RESENDS, console=console) as server:
        from understudy.engines.vllm_engine import restore_parameters

        left_out, with_floor = Counter[str](), Counter[bool]()

        def replayed() -> Iterator[offline.Recorded]:
            for each in replayable(views, restore_parameters, left_out, only):
                with_floor[each.floor is not None] += 1
                yield each

        outcome = await offline.replay(server, replayed(), total=total, concurrency=concurrency, console=console)
        code = await offline.finish(server, outcome, out=out, gate=gate, console=console)
    for gate_ in parse(raw).gates:
        if gate_.needs_floor and not with_floor[True]:
            console.print(
                f"{gate_.metric}: no exchange has a noise floor in the record, so nothing is known", style="red"
            )
    for reason, count in sorted(left_out.items()):
        console.print(f"{count} recorded exchanges were left out: {reason}", style="yellow", markup=False)
    return code


def replayable(
    views: Iterator[Mapping[str, Any]], restore: Restore, left_out: Counter[str], only: str | None = None
) -> Iterator[offline.Recorded]:
    """Each exchange that can be replayed. ``left_out`` counts the others by their reason.

    ``only`` is the name of the champion whose answers count; a record may go on under another one.
    """
    for view in views:
        try:
            exchange, endings = from_view(view)
        except RecordError as fault:
            left_out[f"the record of it cannot be read ({fault})"] += 1
            continue
        why = why_not(exchange, endings, view)
        if only is not None and exchange.champion.model != only:
            why = f"another champion answered it ({exchange.champion.model})"
        if why is not None:
            left_out[why] += 1
            continue
        try:
            exchange = replace(exchange, parameters=restore(exchange.parameters or {}))
        except Unsupported as fault:
            left_out[f"its parameters are not recorded in full ({fault})"] += 1
        else:
            yield offline.Recorded(Replayed(exchange), feedback_of(view), floor_of(endings))


def floor_of(endings: Mapping[str, Ending]) -> Floor | None:
    """The noise floor of an exchange, the same for all its challengers; one that was measured, where there is one."""
    floors = [ending.floor for ending in endings.values() if ending.floor is not None]
    return next((floor for floor in floors if floor.comparison is not None), floors[0] if floors else None)


def why_not(exchange: Exchange, endings: Mapping[str, Ending], view: Mapping[str, Any]) -> str | None:
    """Why an exchange cannot be replayed: it never was one of the champion's, or its text was not recorded."""
    for ending in endings.values():
        if ending.state is State.SHED and ending.reason in NOT_EXCHANGES:
            return f"no challenger could have met it ({ending.reason})"
    redacted = any(answer.get("num_tokens") and not answer["token_ids"] for answer in view["champion"]["answers"])
    if redacted or not exchange.champion.prompt_token_ids:
        return "its text was redacted, or never recorded"
    return None


def finished(record: Path, challengers: Sequence[str]) -> set[str]:
    """The exchanges that an interrupted run of the same kind has ended for every challenger."""
    if not record.exists():
        return set()
    try:
        return {view["exchange_id"] for view in scan(record) if offline.is_done(view, challengers, RESENDS)}
    except RecordError:
        return set()  # it was interrupted before anything was written
