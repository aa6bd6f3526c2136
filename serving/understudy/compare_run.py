"""``understudy compare`` put together: the prompts, the configuration, the server, the report."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from understudy import offline
from understudy.config import RecordSpec, parse
from understudy.errors import RecordError
from understudy.prompts import Prompt, read_prompts
from understudy.record import scan
from understudy.record.recording import Recording
from understudy.types import State
from understudy.variants import with_gates, with_models

RESENDS = frozenset({State.EXPIRED, State.CANCELLED})
"""Nobody cancels here but who interrupts the run."""


def run(
    prompts: Path,
    *,
    out: Path,
    concurrency: int,
    gate: bool,
    max_tokens: int | None,
    temperature: float | None,
    label_pattern: str | None,
    **models: Any,
) -> int:
    """Everything that ``understudy compare`` does; returns the exit code.

    Raises:
        ConfigError: options, the configuration or lines of the file are wrong; no engine was started.
    """
    console = offline.wide_console()
    defaults = {"max_tokens": max_tokens, "temperature": temperature}
    listed = read_prompts(prompts, {name: value for name, value in defaults.items() if value is not None})
    raw = with_gates(with_models(**models), label_pattern)
    raw = offline.offline_config(raw, out=out, concurrency=concurrency, has_champion=True)
    config = parse(raw)
    offline.take_folder(out, {"config": raw, "prompts": hashlib.sha256(prompts.read_bytes()).hexdigest()})
    left = not_done(listed, config.record, [model.name for model in config.challengers])
    if len(left) < len(listed):
        console.print(f"going on: {len(listed) - len(left)} of {len(listed)} prompts are in the record already")
    if any(prompt.label for prompt in listed) and not any(each.get("metric") == "accuracy" for each in raw["gates"]):
        console.print("the labels are recorded, but no gate reads them: --label-pattern adds one", style="yellow")
    return asyncio.run(_run(raw, left, out=out, concurrency=concurrency, gate=gate, console=console))


async def _run(
    raw: Mapping[str, Any], prompts: Sequence[Prompt], *, out: Path, concurrency: int, gate: bool, console: Console
) -> int:
    async with offline.started(raw, serve=True, resends=RESENDS, console=console) as server:
        outcome = await offline.compare(server, prompts, concurrency=concurrency, console=console)
        return await offline.finish(server, outcome, out=out, gate=gate, console=console)


def not_done(prompts: Sequence[Prompt], record: RecordSpec, challengers: Sequence[str]) -> list[Prompt]:
    """The prompts that have not ended for every challenger in the record of an interrupted run.

    Where a redactor finds something in the id of one, the record has a pseudonym for it.
    """
    if not record.folder.exists():
        return list(prompts)
    try:
        views = (view for view in scan(record.folder) if offline.is_done(view, challengers, RESENDS))
        done = {view["client_request_id"] for view in views}
    except RecordError:
        return list(prompts)  # it was interrupted before anything was written
    recorded = Recording.of(record, "").privacy.id
    return [prompt for prompt in prompts if recorded(prompt.id) not in done]
