"""Who sends offline: everything ends, Ctrl-C in two steps, errors that are not hidden. A lane with fake engines."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.builders import Ear, Offer, exchange, in_loop, offers, shadow_spec, turns

from understudy import compare_run, offline, replay_run
from understudy.archive import Archive
from understudy.compare import Comparators
from understudy.config import parse
from understudy.engines.fake import FakeEngine
from understudy.engines.placements import Engines
from understudy.engines.quarantine import Quarantine
from understudy.errors import EngineDead, RecordError
from understudy.lane.guard import Guard
from understudy.lane.lane import Lane
from understudy.record import Feedback, scan
from understudy.server import Server as RealServer
from understudy.types import Comparison, Floor, RequestFacts, State


class Server:
    """What offline asks of a server, over a lane."""

    def __init__(self, engine: FakeEngine) -> None:
        self.ear, self.told = Ear(), list[Feedback]()
        self.lane = Lane([engine], shadow_spec(max_concurrency=1, max_pending=2**31), self.ear)
        self.room, self.idle, self.counts = self.lane.room, self.lane.idle, self.lane.counts
        self.lane.start()

    def offer(self, offered: Offer, floor: Floor | None = None) -> None:
        del floor
        self.lane.offer(offered)

    async def feedback(self, given: Feedback) -> bool:
        self.told.append(given)
        return True


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def recorded(count: int) -> list[offline.Recorded]:
    return [offline.Recorded(each, [Feedback(each.exchange_id, "a", 1.0)]) for each in offers(count)]


def replay(server: Server, items: Any, console: Console | None = None) -> Any:
    return offline.replay(server, items, total=10, concurrency=2, console=console or quiet())  # type: ignore[arg-type]


def said(console: Console) -> bool:
    return "Ctrl-C again" in console.file.getvalue()  # type: ignore[attr-defined]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await turns(1)


@in_loop
async def test_everything_is_offered_with_its_feedback_and_ends() -> None:
    server = Server(FakeEngine())
    outcome = await replay(server, iter(recorded(10)))
    assert (outcome.interrupted, dict(outcome.refused)) == (False, {})
    assert server.ear.words() == ["compared"] * 10
    assert len(server.told) == 10
    await server.lane.close()


@in_loop
async def test_the_first_interrupt_lets_what_is_under_way_end_and_the_second_does_not() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    server, console = Server(engine), quiet()
    running = asyncio.ensure_future(replay(server, iter(recorded(100)), console))
    await until(lambda: server.counts()["fake"]["pending"] >= 8)  # 4 times the 2 at a time: the others wait
    await turns(50)
    assert server.counts()["fake"]["pending"] <= 9
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: said(console))
    assert not running.done()
    os.kill(os.getpid(), signal.SIGINT)
    outcome = await running
    assert outcome.interrupted
    assert server.ear.words() == []
    await server.lane.close()
    assert engine.aborted == 1


@in_loop
async def test_when_the_engine_is_dead_nobody_goes_on_sending() -> None:
    server, under_way, ended = Server(FakeEngine()), asyncio.Event(), []

    async def feedback(given: Feedback) -> bool:
        if given.id == "x-0":
            await under_way.wait()
            raise EngineDead("the champion is gone")
        under_way.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(given.id)
        return True

    server.feedback = feedback  # type: ignore[method-assign]
    with pytest.raises(EngineDead, match="the champion is gone"):
        await replay(server, iter(recorded(10)))
    assert ended == ["x-1"]
    await server.lane.close()


@in_loop
async def test_after_one_interrupt_nothing_is_left_pending() -> None:
    gate = asyncio.Event()
    server, console = Server(FakeEngine(gate=gate)), quiet()
    running = asyncio.ensure_future(replay(server, iter(recorded(100)), console))
    await until(lambda: server.counts()["fake"]["pending"] > 0)
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: said(console))
    gate.set()
    outcome = await running
    counts = server.counts()["fake"]
    assert outcome.interrupted
    assert counts["pending"] == 0
    assert 0 < counts["compared"] == counts["sampled"] < 100
    await server.lane.close()


@in_loop
async def test_a_record_that_cannot_be_read_any_further_is_an_error_and_not_an_end() -> None:
    def broken() -> Any:
        yield offline.Recorded(Offer(exchange("x")))
        raise OSError("gone")

    server = Server(FakeEngine())
    with pytest.raises(OSError, match="gone"):
        await replay(server, broken())
    await server.lane.close()


async def real_server(
    tmp_path: Path, engine: FakeEngine, guard: Guard, resends: Collection[State] = (), **more: Any
) -> RealServer:
    """The real server and record, and no engine process at all."""
    raw = {
        "champion": {"model": "lead"},
        "challengers": [{"model": "rival", "name": "fake"}],
        "gates": [{"metric": "missing", "margin": 0.05, "min_units": 5}],
    } | more
    config = parse(offline.offline_config(raw, out=tmp_path, concurrency=2, has_champion=False))
    folder = str(tmp_path / "sockets")
    engines = Engines(None, [engine], [], folder, asyncio.Event(), Quarantine(None), tmp_path)
    archive = await Archive.open(tmp_path / "record" / "replica-0", lambda given: given or {}, config.gates, guard)
    server = RealServer(config, engines, archive, guard, Comparators(config.compare, guard))
    server._lane.restore(archive.take_up(resends))
    server._lane.start()
    await server.taken_up()
    return server


@pytest.mark.parametrize("resends", [compare_run.RESENDS, replay_run.RESENDS])
@in_loop
async def test_what_was_cut_off_and_sent_again_is_judged_by_its_last_ending(
    tmp_path: Path, resends: frozenset[State]
) -> None:
    """A second Ctrl-C, as kill -9, leaves exchanges without an end. compare sends new ids, replay the same."""

    def asked(numbers: Iterable[int], turn: int) -> Any:
        for number in numbers:
            id = f"x-{number}" if resends == replay_run.RESENDS else f"x-{number}-{turn}"
            yield offline.Recorded(Offer(exchange(id, facts=RequestFacts(client_request_id=f"prompt-{number}"))))

    first = await real_server(tmp_path, FakeEngine(gate=asyncio.Event()), Guard(), resends)
    running = asyncio.ensure_future(replay(first, asked(range(8), 1)))  # type: ignore[arg-type]
    await until(lambda: first.counts()["fake"]["pending"] == 8)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await first.close()
    for turn in (2, 3):  # the third time nothing is left, and nothing changes
        record, left = tmp_path / "record", [f"prompt-{number}" for number in range(120)]
        done = {view["client_request_id"] for view in scan(record) if offline.is_done(view, ["fake"], resends)}
        left = [id for id in left if id not in done]
        assert len(left) == (120 if turn == 2 else 0)
        server, console = await real_server(tmp_path, FakeEngine(), Guard(), resends), quiet()
        numbers = (int(id.removeprefix("prompt-")) for id in left)
        outcome = await offline.replay(
            server, asked(numbers, turn), total=len(left), concurrency=2, console=console
        )  # fmt: skip
        assert await offline.finish(server, outcome, out=tmp_path, gate=False, console=console) == 0
        assert await offline.finish(server, outcome, out=tmp_path, gate=True, console=console) == 0  # GO
        (gate,) = (await server.status())["verdict"]["gates"]
        assert (gate["units"], gate["missing_fraction"]) == (120, 0.0)
        counts = server.counts()["fake"]
        assert (counts["sampled"], counts["compared"], counts["expired"]) == (128, 120, 8)  # all of it is accounted for
        await server.close()


@in_loop
async def test_a_replay_ends_in_table_page_and_exit_code_without_a_champion(tmp_path: Path) -> None:
    guard = Guard()
    server, console = await real_server(tmp_path, FakeEngine(), guard), quiet()
    items: Any = iter(recorded(120))
    outcome = await offline.replay(server, items, total=120, concurrency=2, console=console)
    assert server.counts()["fake"]["compared"] == 120
    code = await offline.finish(server, outcome, out=tmp_path, gate=False, console=console)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "report.json", tmp_path / "report.html")} == {0o600}
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert code == 0, said
    assert await offline.finish(server, outcome, out=tmp_path, gate=True, console=console) == 0  # GO
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"]["champion"]["ready"] is False
    assert report["status"]["verdict"]["verdict"] == "GO"
    assert report["summaries"][0]["exact_match_fraction"] == 1.0
    assert "challenger fake" in said
    assert "fake" in (tmp_path / "report.html").read_text()
    assert not guard.swallowed
    await server.close()
    assert sum(view["challengers"]["fake"]["state"] == "compared" for view in scan(tmp_path / "record")) == 120


@in_loop
async def test_a_replay_takes_over_the_noise_floors_that_were_recorded(tmp_path: Path) -> None:
    """The gates of the configuration under which it was recorded then say the same, without a champion."""
    gates = [{"metric": "agreement_above_floor", "margin": 0.2, "min_units": 5}]
    guard = Guard()
    server = await real_server(tmp_path, FakeEngine(), guard, gates=gates, shadow={"noise_floor": 0.5})

    def floor(number: int) -> Floor | None:
        own = {"exact_match": float(number % 4 > 0), "champion_logprob": -0.5, "scored_tokens": 2.0}
        return (None, Floor(reason="late"), Floor(comparison=Comparison(own)))[number % 3]

    recorded = [offline.Recorded(each, floor=floor(number)) for number, each in enumerate(offers(120))]
    await offline.replay(server, recorded, total=120, concurrency=2, console=quiet())
    server.no_more_exchanges()
    status = await server.status()
    (gate,) = status["verdict"]["gates"]
    assert gate["units"] == 40  # those whose floor was measured
    assert (gate["champion_mean"], gate["challenger_mean"]) == (0.75, 1.0)
    assert status["verdict"]["verdict"] == "GO"
    assert not guard.swallowed
    await server.close()
    views = {view["exchange_id"]: view["challengers"]["fake"] for view in scan(tmp_path / "record")}
    for number in range(120):
        end, own = views[f"x-{number}"], floor(number)
        assert end["floor"] == (None if own is None else {
            "comparison": None if own.comparison is None else own.comparison.values, "reason": own.reason,
        })  # fmt: skip
        assert ("perplexity_ratio" in end["comparison"]) == (number % 3 == 2)


@in_loop
async def test_without_a_record_there_is_nothing_to_come_for() -> None:
    archive = Archive(None, "nothing is recorded: the disk is full", (), Guard())
    with pytest.raises(RecordError, match="the disk is full"):
        await archive.taken_up()
