"""Counts and verdicts go on across a restart, and a store that cannot be had stops nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from tests.builders import exchange, in_loop
from tests.record.builders import SMALL, FakeDisk, open_keeper, small_queue

from understudy.api import routes
from understudy.archive import REPLAY_BATCH, Archive
from understudy.browse.select import Filters
from understudy.compare import Comparators
from understudy.config import parse
from understudy.engines.fake import FakeEngine
from understudy.engines.placements import Engines
from understudy.engines.quarantine import Quarantine
from understudy.errors import NotKept, RecordError, Refused
from understudy.judge.gates import Gate
from understudy.judge.verdict import Judge
from understudy.lane.guard import Guard
from understudy.promotion import Promotion
from understudy.record import Feedback, RecordKeeper, RecordReader, scan
from understudy.record.chat import label_of
from understudy.record.seal import seal
from understudy.record.sources import Source
from understudy.record.sql import query
from understudy.record.waiting import Waiting
from understudy.server import Server
from understudy.types import Answer, Comparison, Ending, Exchange, Observation, Outcome, State, Timings

GATES = (Gate("accuracy", 0.2, pattern=r"label: (\w+)", min_units=20),)


def describe(_: Any) -> Mapping[str, Any]:
    return {}


async def opened(folder: Path) -> Archive:
    return await Archive.open(folder, describe, GATES, Guard())


def compared(text: str) -> Ending:
    answer = Answer((1, 2), text, "stop")
    observation = Observation("rival", Outcome.FINISHED, (1,), (answer,), Timings(0.0, None, 1.0))
    return Ending(State.COMPARED, challenger=observation, comparison=Comparison({"token_agreement": 1.0}))


def asked(number: int) -> Exchange:
    return exchange(f"x{number}", Answer((1, 2), "label: billing", "stop"))


async def fill(archive: Archive, count: int) -> None:
    for number in range(count):
        archive.accepted(asked(number), ["rival"], {"rival": number + 1})
        archive.ended(asked(number), "rival", compared("label: billing"))
        await archive.feedback(Feedback(f"x{number}", "billing", 1.0))


async def earlier_run(folder: Path, count: int) -> None:
    """One that has recorded so many, and has ended."""
    archive = await opened(folder)
    archive.take_up()
    await fill(archive, count)
    await archive.close()


async def judged(folder: Path) -> Archive:
    """An archive that has taken up all that is there."""
    archive = await opened(folder)
    archive.take_up()
    await archive.replayed.wait()
    return archive


@in_loop
async def test_counts_and_verdict_are_the_same_after_a_restart(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    first.take_up()
    await fill(first, 40)
    before = first.verdicts(["rival"], idle=True)
    await first.close()
    again = await opened(tmp_path)
    counts = again.take_up()
    assert (counts["rival"].sampled, counts["rival"].compared, counts["rival"].offered) == (40, 40, 40)
    await again.replayed.wait()
    assert again.verdicts(["rival"], idle=True) == before
    assert before["rival"]["verdict"] == "GO"
    await again.close()


@in_loop
async def test_what_a_run_left_unfinished_ends_as_expired_and_is_recorded_so(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    first.take_up()
    first.accepted(asked(1), ["rival"], {"rival": 1})
    await first.close()
    for _ in range(2):  # and only once
        again = await opened(tmp_path)
        counts = again.take_up()["rival"]
        assert (counts.sampled, counts.expired, counts.pending) == (1, 1, 0)
        found = await again.find("x1")
        assert found[0]["challengers"]["rival"]["state"] == "expired"
        assert found[0]["challengers"]["rival"]["detail"] == "restart"
        await again.close()


@in_loop
async def test_a_run_may_leave_more_unfinished_than_the_writer_can_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await opened(tmp_path)
    first.take_up()
    for number in range(105):
        first.accepted(asked(number), ["rival"], {"rival": number + 1})
    await first.close()
    small_queue(monkeypatch)
    again = await opened(tmp_path)
    assert again.take_up()["rival"].expired == 105
    await again.replayed.wait()
    assert (again.status()["lost"], again.incomplete) == (0, False)
    assert Counter(view["challengers"]["rival"]["state"] for view in scan(tmp_path)) == {"expired": 105}
    await again.close()


@in_loop
async def test_a_store_that_cannot_be_had_stops_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    archive = await opened(tmp_path / "taken")
    assert archive.take_up() == {}
    archive.accepted(asked(1), ["rival"], {"rival": 1})
    archive.ended(asked(1), "rival", compared("label: billing"))
    with pytest.raises(NotKept, match="nothing is recorded"):
        await archive.feedback(Feedback("x1", "billing", 1.0))
    assert archive.waiting.ids() == []  # the same again is no repetition
    assert await archive.find("x1") == []
    status = archive.status()
    assert status["recording"] is False
    assert "nothing is recorded" in status["detail"]
    await archive.close()


@in_loop
async def test_feedback_is_kept_while_recording_is_off_and_refused_where_there_is_no_room(tmp_path: Path) -> None:
    disk = FakeDisk()
    keeper = open_keeper(tmp_path, disk=disk.seams(), limits=SMALL)
    archive = Archive(keeper, "", GATES, Guard())
    disk.free_bytes = 0
    assert not await archive.feedback(Feedback("first", "billing", 1.0))
    num_kept = 1
    while not keeper.why_full():
        assert not await archive.feedback(Feedback(f"{num_kept}", "billing" * 20, 1.0))
        assert archive.status()["recording"] is False
        num_kept += 1
    with pytest.raises(NotKept, match=r"no room for more; recording is off: .*No space left"):
        await archive.feedback(Feedback("one more", "billing", 1.0))
    assert (len(archive.waiting.ids()), archive.status()["lost"]) == (num_kept, 0)
    disk.free_bytes = 1 << 20
    await keeper.flush()
    assert not await archive.feedback(Feedback("one more", "billing", 1.0))
    await archive.close()
    assert len(list(RecordReader(tmp_path).feedback())) == num_kept + 1
    with pytest.raises(NotKept, match="it was closed"):
        await archive.feedback(Feedback("late", "billing", 1.0))


@in_loop
async def test_of_feedback_that_comes_at_once_only_what_has_room_is_kept(tmp_path: Path) -> None:
    disk = FakeDisk()
    keeper = open_keeper(tmp_path, disk=disk.seams(), limits=SMALL)
    archive = Archive(keeper, "", GATES, Guard())
    disk.free_bytes = 0
    backlog, before, num_kept = keeper._writer._backlog, 0, 0
    while 2 * backlog.num_bytes - before < SMALL.max_backlog_bytes:  # until there is room for one more
        before = backlog.num_bytes
        await archive.feedback(Feedback(f"{num_kept:04d}", "billing" * 20, 1.0))
        num_kept += 1
    assert not keeper.why_full()
    given = [Feedback(id, "billing" * 20, 1.0) for id in ("left", "right", "left", "right")]
    told = await asyncio.gather(*map(archive.feedback, given), return_exceptions=True)
    assert {type(answer) for answer in told} == {bool, NotKept}
    (kept,) = {one for one, answer in zip(given, told, strict=True) if answer is False}  # and of no other that it was
    (refused,) = {*given} - {kept}
    assert (archive.waiting.ids()[-1], archive.status()["lost"]) == (kept.id, 0)
    disk.free_bytes = 1 << 20
    await keeper.flush()
    assert not await archive.feedback(refused)
    await archive.close()
    assert [one["id"] for one in RecordReader(tmp_path).feedback()][num_kept:] == [kept.id, refused.id]


@pytest.mark.parametrize("at", ["flush", "keep"])
@in_loop
async def test_feedback_of_a_client_that_leaves_is_kept_and_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    archive = await opened(tmp_path)
    archive.accepted(asked(1), ["rival"], {"rival": 1})
    archive.ended(asked(1), "rival", compared("label: billing"))
    real, is_there, go_on = getattr(RecordKeeper, at), asyncio.Event(), asyncio.Event()

    async def held(*args: Any) -> None:
        await real(*args)
        is_there.set()
        await go_on.wait()

    monkeypatch.setattr(RecordKeeper, at, held)
    leaving = asyncio.create_task(archive.feedback(Feedback("x1", "billing", 1.0)))
    await is_there.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    again = asyncio.create_task(archive.feedback(Feedback("x1", "billing", 2.0)))
    await asyncio.sleep(0)
    go_on.set()
    assert await again
    assert archive.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == 1
    await archive.close()
    assert [one["at_unix_s"] for one in RecordReader(tmp_path).feedback()] == [1.0]


@in_loop
async def test_feedback_that_fails_at_a_damaged_record_is_none_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> NoReturn:
        raise RecordError("damaged")

    archive = await opened(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(RecordReader, "find", damaged)
        with pytest.raises(RecordError, match="damaged"):
            await archive.feedback(Feedback("x1", "billing", 1.0))
    assert archive.waiting.ids() == []
    assert not await archive.feedback(Feedback("x1", "billing", 2.0))
    await archive.close()
    assert [one["at_unix_s"] for one in RecordReader(tmp_path).feedback()] == [2.0]


@in_loop
async def test_one_unreadable_exchange_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await earlier_run(tmp_path, 30)
    import understudy.archive as module

    real = module.from_view

    def broken(view: Mapping[str, Any]) -> Any:
        if view["exchange_id"] == "x3":
            raise ValueError("damaged")
        return real(view)

    monkeypatch.setattr(module, "from_view", broken)
    guard = Guard()
    again = await Archive.open(tmp_path, describe, GATES, guard)
    again.take_up()
    await again.replayed.wait()
    assert guard.swallowed["replay"] == 1
    assert again.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == 29
    await again.close()


@in_loop
async def test_one_exchange_that_cannot_be_judged_does_not_end_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await earlier_run(tmp_path, 30)
    real = Judge.ended

    def broken(self: Judge, exchange: Exchange, *rest: Any) -> None:
        if exchange.exchange_id == "x3":
            raise ValueError("a metric that cannot read it")
        real(self, exchange, *rest)

    monkeypatch.setattr(Judge, "ended", broken)
    again = await opened(tmp_path)
    again.take_up()
    assert again._replaying is not None
    await again._replaying
    assert again.replayed.is_set()
    assert again.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == 29
    await again.close()


@in_loop
async def test_a_label_that_comes_before_the_exchange_is_taken_in_counts(tmp_path: Path) -> None:
    archive = await opened(tmp_path)
    archive.take_up()
    assert not await archive.feedback(Feedback("request-x1", "billing", 1.0))
    archive.accepted(asked(1), ["rival"], {"rival": 1})
    archive.ended(asked(1), "rival", compared("label: billing"))
    assert archive.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == 1
    await archive.close()


@in_loop
async def test_feedback_again_changes_nothing_and_a_later_word_stands(tmp_path: Path) -> None:
    archive = await opened(tmp_path)
    archive.take_up()
    archive.accepted(asked(1), ["rival"], {"rival": 1})
    given = [
        Feedback("x1", "billing", 1.0),
        Feedback("request-x1", "billing", 2.0),  # another id of the same
        Feedback("x1", "", 3.0, 0.5, "score"),
        Feedback("x1", "billing", 4.0),
        Feedback("x1", "refund", 5.0),
        Feedback("x1", "", 6.0, 0.5, "score"),
        Feedback("x1", "billing", 7.0),
    ]
    for one in given:
        assert await archive.feedback(one)
    archive.ended(asked(1), "rival", compared("label: billing"))
    (view,) = await archive.find("x1")
    told = [(one["label"], one["value"], one["name"]) for one in view["feedback"]]
    assert told == [("billing", None, ""), ("", 0.5, "score"), ("refund", None, ""), ("billing", None, "")]
    await archive.close()


@in_loop
async def test_the_label_that_stands_is_the_same_live_after_a_restart_and_in_every_list(tmp_path: Path) -> None:
    """The latest by its time, however they came; what has a name is no right answer."""
    first = await opened(tmp_path)
    first.take_up()
    await fill(first, 40)
    for number in range(40):
        for one in (
            Feedback(f"x{number}", "refund", 9.0),
            Feedback(f"x{number}", "billing", 5.0),  # comes late
            Feedback(f"x{number}", "billing", 10.0, None, "csat"),
        ):
            assert await first.feedback(one)
    before = first.verdicts(["rival"], idle=True)
    assert before["rival"]["gates"][0]["champion_mean"] == 0.0  # "refund" is what is right: nobody says it
    await first.close()
    again = await judged(tmp_path)
    assert again.verdicts(["rival"], idle=True) == before
    views = list(scan(tmp_path))
    assert {label_of(view) for view in views} == {"refund"}
    assert {row.label for row in Filters().rows(views)} == {"refund"}
    assert len(list(Filters(label="refund").rows(views))) == 40
    await again.close()


@in_loop
async def test_feedback_for_ids_that_are_not_known_is_kept_and_reported_across_restarts(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    first.take_up()
    for _ in range(2):
        assert not await first.feedback(Feedback("nobody", "billing", 1.0))
    assert not await first.feedback(Feedback("request-x1", "billing", 1.0))
    assert first.waiting.ids() == ["nobody", "request-x1"]
    assert first.status()["feedback_waiting"] == 2
    await first.close()
    assert len(list(RecordReader(tmp_path).feedback())) == 2
    again = await judged(tmp_path)
    assert again.waiting.ids() == ["nobody", "request-x1"]
    again.accepted(asked(1), ["rival"], {"rival": 1})
    again.ended(asked(1), "rival", compared("label: billing"))
    assert again.waiting.ids() == ["nobody"]
    assert again.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == 1
    await again.close()
    last = await judged(tmp_path)
    assert last.waiting.ids() == ["nobody"]
    await last.close()


@in_loop
async def test_feedback_that_is_read_after_its_exchange_came_does_not_wait_for_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await opened(tmp_path)
    first.take_up()
    assert not await first.feedback(Feedback("request-now", "billing", 1.0))
    await first.close()
    real = Archive._waiting_feedback
    has_read, go_on = threading.Event(), threading.Event()

    def held(self: Archive) -> Any:
        found = real(self)
        has_read.set()
        go_on.wait()
        return found

    monkeypatch.setattr(Archive, "_waiting_feedback", held)
    again = await opened(tmp_path)
    again.take_up()
    await asyncio.to_thread(has_read.wait)
    now = replace(asked(0), exchange_id="now", request_id="request-now", arrived_unix_s=time.time())
    again.accepted(now, ["rival"], {"rival": 1})
    again.ended(now, "rival", compared("label: billing"))
    go_on.set()
    await again.replayed.wait()
    assert again.waiting.ids() == []
    assert again.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == 1
    await again.close()


@in_loop
async def test_labels_of_known_exchanges_do_not_push_out_at_a_restart_what_really_waits(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    first.take_up()
    assert not await first.feedback(Feedback("request-x99", "billing", 1.0))
    await fill(first, 40)
    await first.close()
    again = await opened(tmp_path)
    again.waiting = Waiting(max_ids=10)
    again.take_up()
    await again.replayed.wait()
    assert (again.waiting.ids(), again.waiting.num_forgotten) == (["request-x99"], 0)
    assert again.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == 40
    await again.close()


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [
        (Outcome.FAILED, Ending(State.FAILED, "champion_failed")),
        (Outcome.FINISHED, Ending(State.SHED, "other_model")),
        (Outcome.FINISHED, Ending(State.SHED, "beam_search")),
        (Outcome.CANCELLED, Ending(State.CANCELLED)),
    ],
)
def test_what_is_no_exchange_of_the_champions_does_not_count_against_a_challenger(
    outcome: Outcome, ending: Ending
) -> None:
    judge = Judge([Gate("missing", 0.05, min_units=20)])
    for number in range(120):
        judge.ended(exchange(f"x{number}", outcome=outcome), "rival", ending)
    assert judge.verdict("rival").gates[0].units == 0
    judge.ended(exchange("shed"), "rival", Ending(State.SHED, "queue_full"))
    assert judge.verdict("rival").gates[0].units == 1


@in_loop
async def test_changed_gates_are_entered_at_the_first_start_that_has_them(tmp_path: Path) -> None:
    async def start(sha: str | None) -> None:
        archive = await opened(tmp_path)
        archive.take_up()
        hashes = {"gates": [sha], "gates_sha256": sha}
        archive.identify(hashes, {})
        archive.control("start", {}, hashes)
        archive.compare_gates(hashes, dict)
        assert archive._comparing is not None
        await archive._comparing
        await archive.close()
        seal(Source.at(tmp_path), "replica-0", include_newest=sha == "b")  # found in the log, and in what is sealed

    for sha in ("a", "a", "b", "b", None, "c", "a"):
        await start(sha)
    rows = query(tmp_path, "SELECT actor, document FROM controls WHERE action = 'gates_changed' ORDER BY at_unix_s")[1]
    changes = [json.loads(document)["detail"] for _, document in rows]
    assert [(each["before"]["gates_sha256"], each["now"]["gates_sha256"]) for each in changes] == [
        ("a", "b"),
        ("c", "a"),
    ]
    assert {actor for actor, _ in rows} == {"server"}


@in_loop
async def test_what_must_not_be_done_without_its_entry_is_told_when_there_is_none(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    await first.enter("promote", {"rival": 3}, {"challenger": "rival"}, "ann")
    assert query(tmp_path, "SELECT action, actor FROM controls")[1] == [("promote", "ann")]
    second = await opened(tmp_path)  # the folder has a writer
    with pytest.raises(RecordError, match="nothing is recorded"):
        await second.enter("promote", {}, {}, "ann")
    await second.close()
    await first.close()
    with pytest.raises(RecordError):
        await first.enter("promote", {}, {}, "ann")


@asynccontextmanager
async def asking(archive: Archive, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """HTTP to the real server."""
    transport = httpx.ASGITransport(routes.build(serving(archive, folder), None), client=("127.0.0.1", 4000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@in_loop
async def test_of_two_labels_over_http_the_later_one_stands_whichever_comes_last(tmp_path: Path) -> None:
    """x0 and x1 get theirs in the order of their times and the other way round, x2 and x3 before they come."""
    first = await opened(tmp_path)
    first.take_up()
    older, newer = {"label": "refund", "at_unix_s": 100}, {"label": "billing", "at_unix_s": 200.5}
    orders = {"x0": (older, newer), "x1": (newer, older), "x2": (older, newer), "x3": (newer, older)}

    def come(*numbers: int) -> None:
        for number in numbers:
            first.accepted(asked(number), ["rival"], {"rival": number + 1})
            first.ended(asked(number), "rival", compared("label: billing"))

    async def told(archive: Archive) -> tuple[Any, ...]:
        async with asking(archive, tmp_path) as client:
            views = [(await client.get(f"/shadow/exchanges/{id}")).json()["exchanges"][0] for id in orders]
            (challenger,) = (await client.get("/shadow/status")).json()["challengers"]
        (gate,) = challenger["verdict"]["gates"]
        return [label_of(view) for view in views], gate["units"], gate["champion_mean"], gate["challenger_mean"]

    come(0, 1)
    async with asking(first, tmp_path) as client:
        for id, given in orders.items():
            for one in given:
                answer = await client.post("/shadow/feedback", json={"request_id": f"request-{id}"} | one)
                assert answer.json() == {"request_id": f"request-{id}", "known": id in ("x0", "x1")}
    come(2, 3)
    assert await told(first) == (["billing"] * 4, 4, 1.0, 1.0)
    await first.close()
    again = await opened(tmp_path)
    again.take_up()
    await again.replayed.wait()
    assert await told(again) == (["billing"] * 4, 4, 1.0, 1.0)
    await again.close()


def actions(folder: Path) -> list[str]:
    return [action for (action,) in query(folder, "SELECT action FROM controls")[1]]


@in_loop
async def test_a_pause_takes_effect_at_once_and_its_entry_is_durable_when_it_is_told(tmp_path: Path) -> None:
    disk = FakeDisk()
    archive = Archive(open_keeper(tmp_path, disk=disk.seams()), "", GATES, Guard())
    server = serving(archive, tmp_path)
    assert await server.pause("ann") == ""
    assert actions(tmp_path) == ["pause"]
    assert await server.resume(None, "ann") == ""
    assert actions(tmp_path) == ["pause", "resume"]
    disk.free_bytes = 0
    assert "No space left" in await server.pause("bob")
    assert server._lane.paused
    disk.free_bytes = 1 << 20
    await archive.find("x")
    assert actions(tmp_path) == ["pause", "resume", "pause"]  # it waited
    await archive.close()


@in_loop
async def test_a_pause_waits_for_no_disk_that_hangs_and_needs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.archive.NOTE_MAX_S", 0.05)
    disk = FakeDisk()
    disk.may_sync.clear()
    archive = Archive(open_keeper(tmp_path, disk=disk.seams()), "", GATES, Guard())
    server = serving(archive, tmp_path)
    pausing = asyncio.create_task(server.pause("ann"))
    await asyncio.sleep(0)
    assert server._lane.paused  # before anything was waited for
    assert await pausing == "the store has not answered for 0.05 s"
    disk.may_sync.set()
    await archive.close()
    assert actions(tmp_path) == ["pause"]
    none = Archive(None, "nothing is recorded: no such folder", GATES, Guard())
    assert await serving(none, tmp_path).pause("ann") == "nothing is recorded: no such folder"


async def record_that_turns(folder: Path) -> None:
    """Two batches that say GO alone, and after them what makes it NO-GO."""
    first = await opened(folder)
    first.take_up()
    await fill(first, 2 * REPLAY_BATCH)
    for number in range(2 * REPLAY_BATCH, 8 * REPLAY_BATCH):
        first.accepted(asked(number), ["rival"], {"rival": number + 1})
        first.ended(asked(number), "rival", compared("label: other"))
        await first.feedback(Feedback(f"x{number}", "billing", 1.0))
    await first.close()


def serving(archive: Archive, folder: Path) -> Server:
    """The real server over a fake engine."""
    config = parse({"champion": {"model": "lead"}, "challengers": [{"model": "rival", "name": "rival"}]})
    engine, guard = FakeEngine("rival"), Guard()
    engines = Engines(None, [engine], [], str(folder / "sockets"), asyncio.Event(), Quarantine(None), folder)
    return Server(config, engines, archive, guard, Comparators(config.compare, guard))


def before_reading(monkeypatch: pytest.MonkeyPatch, exchange_number: int, then: Callable[[], None]) -> None:
    real = RecordKeeper.iterate

    def iterate(self: RecordKeeper) -> Iterator[dict[str, Any]]:
        for number, view in enumerate(real(self)):
            if number == exchange_number:
                then()
            yield view

    monkeypatch.setattr(RecordKeeper, "iterate", iterate)


def gone(*_: object) -> NoReturn:
    raise OSError("the disk is gone")


@in_loop
async def test_nothing_is_promoted_before_all_of_the_record_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_that_turns(tmp_path)
    half_way, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        half_way.set()
        go_on.wait()

    before_reading(monkeypatch, 2 * REPLAY_BATCH, hold)
    again = await opened(tmp_path)
    server = serving(again, tmp_path)
    try:
        again.take_up()
        await asyncio.to_thread(half_way.wait)
        assert again.verdicts(["rival"], idle=True)["rival"]["verdict"] == "GO"
        for promotion in (Promotion("rival"), Promotion("rival", "I say so")):
            with pytest.raises(Refused, match="the record of earlier runs is still being read"):
                await server.promote(promotion, "ann")
    finally:
        go_on.set()
    await again.replayed.wait()
    assert not again.incomplete
    with pytest.raises(Refused, match="rival is NO-GO now"):
        await server.promote(Promotion("rival"), "ann")
    assert query(tmp_path, "SELECT action FROM controls WHERE action = 'promote'")[1] == []
    await again.close()


@pytest.mark.parametrize("what", ["exchanges", "feedback"])
@in_loop
async def test_a_record_that_was_not_read_to_its_end_promotes_only_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await record_that_turns(tmp_path)
    if what == "exchanges":
        before_reading(monkeypatch, 2 * REPLAY_BATCH, gone)
    else:
        real, faults = RecordReader.feedback, [gone]  # the first time only: the exchanges need it too

        def feedback(self: RecordReader) -> Any:
            return (faults.pop() if faults else real)(self)

        monkeypatch.setattr(RecordReader, "feedback", feedback)
    again = await opened(tmp_path)
    server = serving(again, tmp_path)
    again.take_up()
    await again.replayed.wait()
    assert again.status()["incomplete"] is True
    with pytest.raises(Refused, match="could not be read to its end"):
        await server.promote(Promotion("rival"), "ann")
    entry = await server.promote(Promotion("rival", "I know the rest"), "ann")
    assert entry["verdict"]["verdict"] == ("GO" if what == "exchanges" else "NO-GO")
    assert query(tmp_path, "SELECT action FROM controls WHERE action = 'promote'")[1] == [("promote",)]
    await again.close()


@in_loop
async def test_what_was_read_before_the_record_failed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await earlier_run(tmp_path, REPLAY_BATCH + 10)
    before_reading(monkeypatch, REPLAY_BATCH + 5, gone)
    again = await judged(tmp_path)
    assert again.verdicts(["rival"], idle=True)["rival"]["gates"][0]["units"] == REPLAY_BATCH + 5
    await again.close()
