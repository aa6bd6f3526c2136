"""``understudy compare`` and ``understudy replay``: the journey without live traffic.

The server is the same as behind HTTP, engines, fork, lane, record and judge, only that its app is called in this
process. What differs is who waits: where a server sheds, this waits for room, so that every prompt ends compared or
with a counted reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from understudy.errors import ConfigError
from understudy.lane.lane import Offered
from understudy.prompts import Prompt
from understudy.record import Feedback
from understudy.record.store import open_private
from understudy.report.fetch import EXIT_CODES, MIN_WIDTH
from understudy.report.page import report_page
from understudy.report.table import print_report
from understudy.server import Server
from understudy.types import Floor, State

UNLIMITED = 2**31
DEADLINE_S = 3600.0
WAITING_TIMES = 4
"""So many exchanges wait for each that a challenger works on; then the champion waits."""
REFRESH_S = 0.2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run: the prompts that the champion refused, by line, and whether Ctrl-C ended it."""

    refused: Mapping[int, str]
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded exchange: for the lane, with what was said of it and its noise floor, None where it was not chosen."""

    offered: Offered
    feedback: Sequence[Feedback] = ()
    floor: Floor | None = None


def offline_config(raw: Mapping[str, Any], *, out: Path, concurrency: int, has_champion: bool) -> dict[str, Any]:
    """``raw`` with everything that sheds, samples or guards a port replaced: nobody is waiting here."""
    shadow = dict(raw.get("shadow") or {})
    given = shadow.get("limits") or {}
    limits = {name: given[name] for name in ("hang_s", "start_timeout_s") if name in given} | {
        "max_pending": UNLIMITED,
        "max_pending_bytes": sys.maxsize,
        "max_concurrency": concurrency,
        "deadline_s": DEADLINE_S,
        "yield_above": UNLIMITED,
        "breaker_faults": UNLIMITED,
    }
    off = {} if has_champion else {"divergence": 0.0}  # noise floors were recorded, and no engine is started for them
    kept = {key: value for key, value in raw.items() if key not in ("auth", "shadow", "record")}
    record = {key: value for key, value in (raw.get("record") or {}).items() if key not in ("url", "spool")}
    return kept | {
        "shadow": shadow | {"sample": 1.0, "limits": limits} | off,
        "record": record | {"url": str(out / "record")},
    }


@asynccontextmanager
async def started(
    raw: Mapping[str, Any], *, serve: bool, resends: Collection[State], console: Console
) -> AsyncIterator[Server]:
    """A server for the time of the block, with what earlier runs recorded already judged, but for what it sends again.

    Raises:
        ConfigError, EngineStartError: it cannot be had.
        RecordError: the record cannot be written, which here is what one comes for.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    console.print("starting the engines ...", style="dim")
    server = await Server.start(raw, serve=serve, resends=resends)
    try:
        await server.taken_up()
        for name, why in server.absent().items():
            console.print(f"challenger {name} did not come up: {why}", style="bold red", markup=False)
        yield server
    finally:
        await server.close()


async def compare(server: Server, prompts: Sequence[Prompt], *, concurrency: int, console: Console) -> Outcome:
    """Send every prompt to the champion, and wait until every challenger has ended every exchange.

    Raises:
        EngineDead: the champion is gone; what was done is in the record.
        NotKept: a label cannot be recorded any more; the same command goes on from there.
    """
    refused: dict[int, str] = {}
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)  # a fault is one answer of 500
    async with httpx.AsyncClient(transport=transport, base_url="http://understudy", timeout=None) as client:

        async def send(prompt: Prompt) -> None:
            tags = {"x-understudy-tags": json.dumps(dict(prompt.tags))} if prompt.tags else {}
            body = {"model": server.champion_name, **prompt.body}
            answer = await client.post(prompt.endpoint, json=body, headers={"x-request-id": prompt.id, **tags})
            if answer.status_code >= 500:
                server.check_health()  # without a champion there is no point in going on
            if answer.status_code != 200:
                refused[prompt.line] = _message(answer)
            elif prompt.label is not None:
                await server.feedback(Feedback(prompt.id, prompt.label, time.time()))

        interrupted = await _work(server, prompts, send, concurrency, "champion", console)
    return Outcome(refused, interrupted)


async def replay(
    server: Server,
    recorded: Iterable[Recorded],
    *,
    total: int,
    concurrency: int,
    console: Console,
) -> Outcome:
    """Offer recorded exchanges to the lane, each with its feedback, and wait until every challenger has ended each.

    Raises:
        NotKept: feedback cannot be recorded any more; the same command goes on from there.
    """

    async def offer(each: Recorded) -> None:
        server.offer(each.offered, each.floor)
        for given in each.feedback:
            await server.feedback(given)

    interrupted = await _work(server, recorded, offer, concurrency, "read from the record", console, total=total)
    return Outcome({}, interrupted)


async def finish(server: Server, outcome: Outcome, *, out: Path, gate: bool, console: Console) -> int:
    """The table, the page and the exit code: as ``report --gate`` where ``gate``, else 0 only if nothing went wrong."""
    server.no_more_exchanges()
    report = await server.report_parts()
    print_report(*report, console)
    status, summaries = report
    said = {"status": status, "summaries": [asdict(one) for one in summaries], "refused": outcome.refused}
    page = out / "report.html"
    for path, text in ((out / "report.json", json.dumps(said, default=str)), (page, report_page(*report))):
        with open_private(path) as file:
            file.write(text)
    for line, why in list(outcome.refused.items())[:10]:
        console.print(f"line {line} was refused by the champion: {why}", style="red", markup=False, soft_wrap=True)
    console.print(f"report: {page.resolve()}", markup=False, soft_wrap=True)
    console.print(f"record: {(out / 'record').resolve()}", markup=False, soft_wrap=True)
    if outcome.interrupted:
        console.print("interrupted: the record holds what was done; the same command goes on from there")
        return INTERRUPTED
    if gate:
        return EXIT_CODES[status["verdict"]["verdict"]]
    return 0 if not outcome.refused and all_compared(status["counts"], server.sent_again()) else 1


def all_compared(counts: Mapping[str, Any], sent_again: Mapping[State, int]) -> bool:
    """Whether there is something, and all of it was compared in the end, by the endings that were not replaced."""
    compared = counts["compared"] - sent_again.get(State.COMPARED, 0)
    return bool(compared == counts["sampled"] - sum(sent_again.values()) > 0)


def is_done(view: Mapping[str, Any], challengers: Sequence[str], resends: Collection[State]) -> bool:
    """Whether a recorded exchange ended for every challenger, and none of them sends it again."""
    ends = view["challengers"]
    return all(name in ends and ends[name]["state"] not in (State.PENDING, *resends) for name in challengers)


def wide_console(min_width: int = MIN_WIDTH) -> Console:
    """Numbers in tables are not cut off."""
    return Console(width=max(min_width, Console().width))


def take_folder(out: Path, what: Mapping[str, Any]) -> None:
    """Make ``out`` this run's, or go on with a run of the very same kind that was interrupted.

    Raises:
        ConfigError: another kind of run is in it.
    """
    said = json.dumps(what, sort_keys=True, indent=1, default=str)
    path = out / "run.json"
    if path.exists() and path.read_text(encoding="utf-8") != said:
        raise ConfigError(f"--out: {str(out)!r} holds a run with other models or settings; take another folder")
    if not path.exists() and (out / "record").exists():
        raise ConfigError(f"--out: {str(out)!r} holds a record that is not of such a run; take another folder")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(said, encoding="utf-8")


async def _work(
    server: Server,
    items: Iterable[Any],
    do: Callable[[Any], Awaitable[None]],
    concurrency: int,
    name: str,
    console: Console,
    total: int | None = None,
) -> bool:
    """``do`` for every item, so many at a time, each when the lane has room. Returns whether Ctrl-C ended it.

    The first Ctrl-C lets what is under way come to its end, so that it does not count as missing; the second does not.
    """
    stop, stop_now = asyncio.Event(), asyncio.Event()
    waiting, done, one_at_a_time = iter(items), 0, asyncio.Lock()

    async def worker() -> None:
        nonlocal done
        while not stop.is_set():
            await server.room(WAITING_TIMES * concurrency)
            async with one_at_a_time:  # reading a record takes its time
                item = await asyncio.to_thread(next, waiting, _END)
            if item is _END:
                return
            await do(item)
            done += 1

    async def work() -> None:
        try:
            async with asyncio.TaskGroup() as workers:  # with one of them all end: no champion, nothing to send to
                for _ in range(concurrency):
                    workers.create_task(worker())
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from faults
        await server.idle()

    def interrupt() -> None:
        (stop_now if stop.is_set() else stop).set()
        console.print("ending when what is under way is done; Ctrl-C again ends it now", style="yellow")

    num_items = total if total is not None else len(items)  # type: ignore[arg-type]
    with _interrupts(interrupt):
        async with _progress(server, name, num_items, lambda: done, console):
            await _until(stop_now, asyncio.ensure_future(work()))
    return stop.is_set()


@contextmanager
def _interrupts(handler: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls ``handler`` for the time of the block; in a thread, which hears no signals, nothing does."""
    loop = asyncio.get_running_loop()
    hears = threading.current_thread() is threading.main_thread()
    if hears:
        loop.add_signal_handler(signal.SIGINT, handler)
    try:
        yield
    finally:
        if hears:
            loop.remove_signal_handler(signal.SIGINT)


_END = object()


async def _until(stop: asyncio.Event, work: asyncio.Future[Any]) -> None:
    """The work, or as much of it as was done when ``stop`` was set. Raises what the work raises."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for each in (work, stopped):
            each.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)


@asynccontextmanager
async def _progress(
    server: Server, name: str, total: int, done: Callable[[], int], console: Console
) -> AsyncIterator[None]:
    """A bar for who sends and one for each challenger."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    before = {challenger: ended(counts) for challenger, counts in server.counts().items()}
    with Progress(*columns, console=console) as bar:
        sent = bar.add_task(name, total=total)
        sides = {challenger: bar.add_task(f"  {challenger}", total=total) for challenger in before}

        def show() -> None:
            bar.update(sent, completed=done())
            for challenger, counts in server.counts().items():
                bar.update(sides[challenger], completed=ended(counts) - before[challenger])

        async def keep_showing() -> None:
            while True:
                show()
                await asyncio.sleep(REFRESH_S)

        showing = asyncio.create_task(keep_showing())
        try:
            yield
        finally:
            showing.cancel()
            show()


def ended(counts: Mapping[str, Any]) -> int:
    """Exchanges of one challenger that have ended."""
    return int(counts["sampled"] - counts["pending"])


def _message(answer: httpx.Response) -> str:
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = answer.text[:300]
    return f"{answer.status_code}: {said}"
