"""Archive and record together, as the configuration has them: who opts out, who acts, and what a bad store does."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.builders import exchange, in_loop

import understudy.archive as archive_module
from understudy.archive import Archive
from understudy.browse.champion import champion_in
from understudy.config import RecordSpec, ShadowSpec
from understudy.engines.fake import FakeEngine
from understudy.errors import ConfigError, RecordError
from understudy.judge.gates import Gate
from understudy.lane.guard import Guard
from understudy.lane.lane import Lane
from understudy.record import Feedback, given, scan, upkeep
from understudy.record.audit import audit
from understudy.record.care import Enter, care
from understudy.record.lines import segments
from understudy.record.patterns import redact
from understudy.record.privacy import Privacy
from understudy.record.recording import Recording, secret_in
from understudy.record.seal import seal
from understudy.record.sealed import rewrite
from understudy.record.signing import Signer, make_key
from understudy.record.sources import Source
from understudy.record.sql import query
from understudy.record.store import RemoteStore
from understudy.recorded import identities
from understudy.report.coverage import Coverage
from understudy.types import Answer, Comparison, Ending, Exchange, RequestFacts, State

from .builders import Offer

DAY_S = 86_400.0


def describe(_: Any) -> Mapping[str, Any]:
    return {"temperature": 0.5}


async def opened(recording: Recording, guard: Guard | None = None) -> Archive:
    archive = await Archive.open(recording.log, describe, (), guard or Guard(), recording)
    archive.take_up()
    return archive


@in_loop
async def test_who_opts_out_leaves_no_trace(tmp_path: Path) -> None:
    archive = await opened(Recording.of(RecordSpec(url=str(tmp_path / "r")), "replica-0"))
    lane = Lane([FakeEngine("b")], ShadowSpec(), archive)
    lane.start()
    secret = exchange("x-secret", Answer((1,), "SECRET", "stop"), facts=RequestFacts(client_request_id="SECRET"))
    lane.offer(Offer(secret, shadow_off=True))
    lane.offer(Offer(exchange("x-open")))
    await lane.idle()
    await lane.close()
    await archive.close()
    assert [view["exchange_id"] for view in scan(tmp_path / "r")] == ["x-open"]
    content = b"".join(path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file())
    assert b"x-open" in content
    assert b"ecret" not in content
    assert b"SECRET" not in content


@in_loop
async def test_every_human_action_is_an_entry_of_the_chain(tmp_path: Path) -> None:
    make_key(tmp_path / "key.pem")
    spec = RecordSpec(url=str(tmp_path / "r"), signing_key=str(tmp_path / "key.pem"))
    recording = Recording.of(spec, "replica-0").of_rollout("abc123")
    archive = await opened(recording)
    archive.control("start", {"b": 0}, {"gates_sha256": "77"})
    for action in ("pause", "resume", "stop"):
        archive.control(action, {"b": 1})
    await archive.close()
    rows = query(spec.url, "SELECT action, rollout FROM controls ORDER BY at_unix_s")[1]
    assert rows == [(action, "abc123") for action in ("start", "pause", "resume", "stop", "checkpoint")]
    done = audit(Source(recording.log, recording.store), "replica-0", Signer(tmp_path / "key.pem").public_key)
    assert (done.findings, done.num_checkpoints) == ([], 1)


@in_loop
async def test_the_archive_has_its_record_cared_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cared = asyncio.Event()
    run = upkeep.run

    async def watched(*args: Any, **options: Any) -> dict[str, Any]:
        done = await run(*args, **options)
        if done["done"]["sealed"]:
            cared.set()
        return done

    monkeypatch.setattr(archive_module, "CARE_S", 0.01)
    monkeypatch.setattr(upkeep, "run", watched)
    recording = Recording.of(RecordSpec(url=str(tmp_path / "r")), "replica-0")
    guard = Guard()
    archive = await opened(recording, guard)
    archive.accepted(exchange("x1"), ["b"], {"b": 1})
    assert await archive.find("x1")
    keeper: Any = archive._keeper
    keeper.begin_file()
    archive.accepted(exchange("x2"), ["b"], {"b": 2})
    await cared.wait()
    assert Source(recording.log, recording.store).sealed() == [1]
    assert len(segments(recording.log)) == 1
    assert await archive.find("x1")
    assert await archive.find("x2")
    await archive.close()
    assert not guard.swallowed


@in_loop
async def test_what_is_compared_stands_in_the_record_longer_than_retention_keeps_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entered again with each retention, so that the report, a replay and the next start's gates can be had."""
    spec = RecordSpec(url=str(tmp_path / "r"), retention="30d")
    recording = Recording.of(spec, "replica-0").of_rollout("abc123")
    gates = {"gates": ["then"], "gates_sha256": "77"}
    identity = {"champion": {"name": "champion", "model": "org/lead"}, "challengers": [], **gates}
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: 1_732_435_200.0)
        archive = await opened(recording)
        archive.identify(identity, {})
        archive.control("start", {}, gates)
        archive.control("pause", {})
        await archive.find("anything")
        patched.setattr(time, "time", lambda: 1_732_435_200.0 + 10 * DAY_S)
        keeper: Any = archive._keeper
        keeper.begin_file()
        archive.control("resume", {})
        await archive.find("anything")
    monkeypatch.setattr(archive_module, "CARE_S", 0.01)
    removed = asyncio.Event()

    async def cared(recording: Recording, enter: Enter, *, adopting: bool) -> dict[str, Any]:
        del adopting  # in this process: the clock of its own would be another
        if await asyncio.to_thread(lambda: care(recording, enter)["removed"]):
            removed.set()
        return {}

    monkeypatch.setattr(upkeep, "run", cared)
    archive.take_up()
    await removed.wait()
    await archive.close()
    assert query(spec.url, "SELECT action FROM controls WHERE action IN ('start', 'pause')")[1] == []
    assert [each["rollout"] for each in identities(spec.url)] == ["abc123"]
    assert champion_in(spec.url) == {"name": "champion", "model": "org/lead", "engine_args": {}}
    again = await opened(recording)
    again.compare_gates({"gates": ["now"], "gates_sha256": "78"}, dict)
    comparing: Any = again._comparing
    await comparing
    await again.close()
    assert len(query(spec.url, "SELECT actor FROM controls WHERE action = 'gates_changed'")[1]) == 1


@in_loop
async def test_what_upkeep_erased_in_an_object_store_is_not_served_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording.of(RecordSpec(url=f"memory://erased-{tmp_path.name}", spool=str(tmp_path)), "replica-0")
    archive = await Archive.open(recording.log, describe, (), Guard(), recording)
    archive.accepted(exchange("x1"), ["b"], {"b": 1})
    assert await archive.find("x1")
    seal(Source(recording.log, recording.store), "replica-0", include_newest=True)
    erased = asyncio.Event()

    async def failing(*_: Any, **__: Any) -> dict[str, Any]:
        for path in recording.store.list("segments"):
            rewrite(recording.store, path, lambda row: {**row, "document": None})
        erased.set()
        raise RecordError("killed")

    assert await archive.find("x1")  # from the sealed segment, whose row groups are in memory now
    monkeypatch.setattr(archive_module, "CARE_S", 0.0)
    monkeypatch.setattr(upkeep, "run", failing)
    archive.take_up()
    await erased.wait()
    await asyncio.sleep(0)
    assert await archive.find("x1") == []
    await archive.close()


@in_loop
async def test_a_store_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file where the folder should be")
    archive = await opened(Recording.of(RecordSpec(url=str(tmp_path / "r"), text="redacted"), "replica-0"))
    archive.accepted(exchange("x1"), ["b"], {"b": 1})
    assert archive.status()["recording"] is False
    await archive.close()


@in_loop
async def test_a_store_that_comes_back_is_used_and_the_gap_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "OPEN_AGAIN_S", (0.0,))
    monkeypatch.setattr(archive_module, "OPEN_LATER_S", 0.01)
    monkeypatch.setattr(archive_module, "MAX_NOTES", 3)
    recording = Recording.of(RecordSpec(url=str(tmp_path / "r")), "replica-0")
    (tmp_path / "r" / "replica-0").write_text("in the way")
    archive = await Archive.open(recording.log, describe, (), Guard(), recording)
    restored: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
    assert archive.take_up() == {}
    archive.keep_opening(restored.set_result)
    archive.identify({"champion": {"name": "lead", "model": "org/lead"}}, {})
    archive.accepted(exchange("x1"), ["b"], {"b": 1})
    assert "not a directory" in (await archive.note("pause", {"b": 1}, actor="ann")).lower()
    paused_unix_s = time.time()
    for _ in range(3):  # of many, some are lost
        await archive.note("resume", {"b": 1}, {"challenger": "b"}, actor="bob")
    assert (archive.status()["recording"], archive.status()["lost"]) == (False, 2)
    (tmp_path / "r" / "replica-0").unlink()
    assert await restored == {}
    archive.accepted(exchange("x2"), ["b"], {"b": 2})
    assert await archive.find("x2")
    assert archive.status()["recording"] is True
    await archive.close()
    (gap,) = query(tmp_path / "r", "SELECT action, num_lost FROM controls WHERE num_lost > 0")[1]
    assert gap == ("recording_resumed", 2)  # x1, and the third resume
    told = query(tmp_path / "r", "SELECT action, actor FROM controls WHERE actor <> 'server' ORDER BY at_unix_s")[1]
    assert told == [("pause", "ann"), ("resume", "bob"), ("resume", "bob")]
    (at,) = query(tmp_path / "r", "SELECT at_unix_s FROM controls WHERE action = 'pause'")[1][0]
    assert at <= paused_unix_s  # its own time
    assert [each["champion"]["name"] for each in identities(str(tmp_path / "r"))] == ["lead"]


@in_loop
async def test_gates_that_changed_are_entered_in_a_record_that_opened_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "OPEN_AGAIN_S", (0.0,))
    monkeypatch.setattr(archive_module, "OPEN_LATER_S", 0.01)
    recording = Recording.of(RecordSpec(url=str(tmp_path)), "replica-0")
    first = await opened(recording)
    first.identify({"gates": ["then"], "gates_sha256": "77"}, {})
    await first.find("anything")  # it is on disk
    second = await opened(recording)
    restored: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
    second.keep_opening(restored.set_result)
    second.identify({"gates": ["now"], "gates_sha256": "78"}, {})
    await first.close()
    await restored
    comparing: Any = second._comparing
    await comparing
    await second.close()
    assert query(tmp_path, "SELECT count(*) FROM controls WHERE action = 'gates_changed'")[1] == [(1,)]


def of(tenant: str, number: int, at_unix_s: float, body: bytes = b"{}") -> Exchange:
    tags = {"session": f"{tenant}, at noon", "tenant": tenant}
    facts = RequestFacts(tags=tags, body=body)
    return replace(exchange(f"x{number}", facts=facts), arrived_unix_s=at_unix_s)


def careful(text: str) -> str:
    if "unheard of" in text:
        raise ValueError("what is this?")
    return redact(text)


@pytest.mark.parametrize("tenant", ["ann@example.org", "acme"])
@pytest.mark.parametrize("text", ["full", "redacted", "none"])
@in_loop
async def test_a_session_and_a_tenant_are_the_same_before_and_after_a_restart(
    tmp_path: Path, text: Any, tenant: str
) -> None:
    """Also beside an exchange whose redaction failed, which has pseudonyms only."""
    recording = Recording.of(RecordSpec(url=str(tmp_path), text=text), "replica-0")
    recording = replace(recording, privacy=Privacy(text, (careful,), recording.privacy.secret))
    gates, bodies = [Gate("missing", 0.05)], (b"{}", b'{"prompt": "unheard of"}')

    def sees(archive: Archive) -> tuple[int, list[Coverage]]:
        (summary,) = archive.summaries({"b": 0.0})
        open_sessions = archive.verdicts(["b"], idle=True)["b"]["open_sessions"]
        return open_sessions, [one for one in summary.coverage if one.kind == "tenant"]

    in_the_clear = text == "full" or (text == "redacted" and tenant == "acme")
    shown = tenant if in_the_clear else recording.privacy.pseudonym(tenant)
    for run in range(3):
        archive = await Archive.open(recording.log, describe, gates, Guard(), recording)
        archive.take_up()
        await archive.replayed.wait()
        num_before = 2 * run
        if run:
            assert sees(archive) == (1, [Coverage("tenant", shown, num_before, 0)])
        for number, body in enumerate(bodies, num_before):
            asked = of(tenant, number, time.time(), body)
            archive.accepted(asked, ["b"], {"b": 1})
            archive.ended(asked, "b", Ending(State.SHED, "queue_full"))
        assert sees(archive) == (1, [Coverage("tenant", shown, num_before + 2, 0)])
        await archive.close()


@pytest.mark.parametrize("text", ["redacted", "none"])
@in_loop
async def test_a_record_that_opens_late_has_pseudonyms_of_its_secret_and_a_session_across_that_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Any
) -> None:
    monkeypatch.setattr(archive_module, "OPEN_AGAIN_S", (0.0,))
    monkeypatch.setattr(archive_module, "OPEN_LATER_S", 0.01)
    spec = RecordSpec(url=str(tmp_path / "r"), text=text)
    (tmp_path / "r").write_text("in the way")
    recording = Recording.of(spec, "replica-0")
    archive = await Archive.open(recording.log, describe, [Gate("missing", 0.05)], Guard(), recording)
    restored: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
    archive.keep_opening(restored.set_result)
    tenant = "ann@example.org"

    def comes(number: int) -> None:
        asked = of(tenant, number, time.time())
        archive.accepted(asked, ["b"], {"b": number})
        archive.ended(asked, "b", Ending(State.SHED, "queue_full"))

    comes(1)
    (tmp_path / "r").unlink()
    await restored
    comes(2)
    assert archive.verdicts(["b"], idle=True)["b"]["open_sessions"] == 1
    await archive.close()
    (view,) = scan(spec.url)
    assert view["tags"]["tenant"] == Recording.of(spec, "replica-0").privacy.pseudonym(tenant)


def test_the_secret_of_a_record_is_there_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def full(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_file(path, flags, *rest, **options)

    secret = secret_in(tmp_path / "r")
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        assert secret_in(tmp_path / "r", b"another") == secret
        with pytest.raises(RecordError, match="No space left"):
            secret_in(tmp_path / "new")


@pytest.mark.parametrize("text", ["full", "redacted", "none"])
@in_loop
async def test_what_was_compared_by_prompt_length_and_tools_is_the_same_after_a_restart(
    tmp_path: Path, text: Any
) -> None:
    recording = Recording.of(RecordSpec(url=str(tmp_path), text=text), "replica-0")

    def covered(archive: Archive) -> set[Coverage]:
        return {one for one in archive.summaries({"b": 0.0})[0].coverage if one.kind != "tenant"}

    first = await opened(recording)
    for number, num_tokens in enumerate((10, 5000)):
        facts = RequestFacts(body=b'{"tools": [{"type": "function"}]}' if number else b"{}")
        asked = exchange(f"x{number}", prompt_token_ids=tuple(range(num_tokens)), facts=facts)
        first.accepted(asked, ["b"], {"b": 1})
        first.ended(asked, "b", Ending(State.SHED, "queue_full"))
    heard = covered(first)
    assert {one.group for one in heard} == {"up to 256 tokens", "up to 16,384 tokens", "with", "without"}
    await first.close()
    again = await opened(recording)
    await again.replayed.wait()
    assert covered(again) == heard
    await again.close()


@in_loop
async def test_answers_that_were_not_recorded_are_neither_right_nor_wrong_after_a_restart(tmp_path: Path) -> None:
    recording = Recording.of(RecordSpec(url=str(tmp_path), text="redacted"), "replica-0")
    recording = replace(recording, privacy=Privacy("redacted", (careful,), recording.privacy.secret))
    gates = [Gate("accuracy", 0.05, pattern="(.*)")]

    async def running() -> Archive:
        archive = await Archive.open(recording.log, describe, gates, Guard(), recording)
        archive.take_up()
        await archive.replayed.wait()
        return archive

    archive = await running()
    for number, words in enumerate(("yes", "unheard of")):
        said = Answer((7, 8), words, "stop")
        asked = exchange(f"x{number}", said)
        archive.accepted(asked, ["b"], {"b": 1})
        ending = Ending(State.COMPARED, challenger=replace(asked.champion, model="b"), comparison=Comparison({}))
        archive.ended(asked, "b", ending)
        await archive.feedback(Feedback(f"x{number}", words, at_unix_s=1.0))
    tokens = archive.summaries({"b": 0.0})[0].shadow_tokens
    await archive.close()
    archive = await running()
    (gate,) = archive.verdicts(["b"], idle=True)["b"]["gates"]
    assert (gate["units"], gate["champion_mean"], gate["challenger_mean"]) == (1, 1.0, 1.0)
    assert archive.summaries({"b": 0.0})[0].shadow_tokens == tokens == 4
    await archive.close()


@in_loop
async def test_what_another_rollout_has_shown_is_no_evidence_for_this_one(tmp_path: Path) -> None:
    whole = Recording.of(RecordSpec(url=str(tmp_path / "r")), "replica-0")
    for rollout, others in (("one", 0), ("two", 1), ("one", 1)):
        archive = await opened(whole.of_rollout(rollout))
        await archive.replayed.wait()
        assert archive.num_other_rollouts == others
        archive.accepted(exchange(f"x-{rollout}"), ["b"], {"b": 1})
        archive.ended(exchange(f"x-{rollout}"), "b", Ending(State.SHED, "pressure"))
        await archive.close()


def test_a_configuration_that_cannot_be_kept_to_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for spec, word in (
        (RecordSpec(url=str(tmp_path), signing_key=str(tmp_path / "none.pem")), "record.signing_key: .*none.pem"),
        (RecordSpec(url=str(tmp_path), text="redacted", redactors=("nowhere:f",)), "record.redactors: 'nowhere:f'"),
        (RecordSpec(url="nosuch://bucket/x", spool=str(tmp_path)), "record.url: 'nosuch://bucket/x'"),
    ):
        with pytest.raises(ConfigError, match=word):
            Recording.of(spec, "replica-0")


@in_loop
async def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        archive = await opened(Recording.of(RecordSpec(url=str(tmp_path / "r"), text="redacted"), "replica-0"))
        archive.accepted(exchange("x1"), ["b"], {"b": 1})
        await archive.close()
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "r", *(tmp_path / "r").rglob("*")]}
    assert modes.pop("r") == modes.pop("replica-0") == 0o700
    assert set(modes.values()) == {0o600}


@in_loop
@pytest.mark.parametrize("text", ["redacted", "none"])
async def test_offline_feedback_is_written_by_the_servers_rule(tmp_path: Path, text: Any) -> None:
    recording = Recording.of(RecordSpec(url=str(tmp_path / "r"), text=text), "replica-0")
    archive = await opened(recording)
    facts = RequestFacts(client_request_id="ann@example.com")
    archive.accepted(exchange("x1", facts=facts), ["b"], {"b": 1})
    await archive.close()
    labels = [Feedback("ann@example.com", "write to bob@example.com", 1.0, name="of carl@example.com")]
    assert await asyncio.to_thread(given.enter, str(tmp_path / "r"), labels) == (1, [])
    assert await asyncio.to_thread(given.enter, str(tmp_path / "r"), labels) == (0, [])  # again: nothing new
    (view,) = scan(tmp_path / "r")
    assert [one["label"].startswith("write to ") for one in view["feedback"]] == [True]
    content = b"".join(path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file())
    assert b"@example.com" not in content


@in_loop
async def test_offline_feedback_is_refused_where_the_rule_cannot_be_known(tmp_path: Path) -> None:
    url = f"memory://given-{tmp_path.name}"
    archive = await opened(Recording.of(RecordSpec(url=url, spool=str(tmp_path / "s"), text="none"), "replica-0"))
    archive.accepted(exchange("x1"), ["b"], {"b": 1})
    await archive.close()
    labels = [Feedback("x1", "good", 1.0)]
    with pytest.raises(RecordError, match="is no spool of"):
        await asyncio.to_thread(given.enter, url, labels, str(tmp_path / "other"))
    assert await asyncio.to_thread(given.enter, url, labels, str(tmp_path / "s")) == (1, [])
    local = await opened(Recording.of(RecordSpec(url=str(tmp_path / "r"), text="none"), "replica-0"))
    local.accepted(exchange("x1"), ["b"], {"b": 1})
    await local.close()
    with pytest.raises(RecordError, match="folder of one writer"):
        await asyncio.to_thread(given.enter, str(tmp_path / "r" / "replica-0"), labels)
    (tmp_path / "r" / "redaction.json").write_text("{}")
    with pytest.raises(RecordError, match="cannot be read"):
        await asyncio.to_thread(given.enter, str(tmp_path / "r"), labels)


class ClientError(Exception):
    """As botocore's: no OSError."""


class Faulty(MemoryFileSystem):
    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    is_down, may_connect = True, True

    def __init__(self, **options: Any) -> None:
        if not Faulty.may_connect:
            raise ClientError("no credentials")
        super().__init__(**options)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise ClientError("AccessDenied")

    def __getattribute__(self, name: str) -> Any:
        asks = name in ("find", "exists", "pipe_file", "cat_file", "rm_file", "_open", "open", "info")
        return super().__getattribute__("_fail" if Faulty.is_down and asks else name)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faulty]]:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    Faulty.clear_instance_cache()
    monkeypatch.setattr(Faulty, "is_down", True)
    monkeypatch.setattr(Faulty, "may_connect", True)
    yield Faulty
    Faulty.clear_instance_cache()


@in_loop
@pytest.mark.parametrize("connects", [True, False])
async def test_an_object_store_that_raises_anything_stops_no_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: type[Faulty], connects: bool
) -> None:
    monkeypatch.setattr(archive_module, "OPEN_AGAIN_S", (0.0,))
    monkeypatch.setattr(archive_module, "OPEN_LATER_S", 0.0)
    monkeypatch.setattr(faulty, "may_connect", connects)
    recording = Recording.of(RecordSpec(url=f"faulty://b-{tmp_path.name}", spool=str(tmp_path)), "replica-0")
    archive = await opened(recording)
    assert not archive.status()["recording"]
    assert "ClientError" in archive.status()["detail"]
    lane = Lane([FakeEngine("b")], ShadowSpec(), archive)
    lane.start()
    lane.offer(Offer(exchange("x1")))
    await lane.idle()
    is_open = asyncio.Event()
    archive.keep_opening(lambda _: is_open.set())
    faulty.is_down, faulty.may_connect = False, True
    await is_open.wait()
    assert archive.status()["recording"]
    await lane.close()
    await archive.close()


def test_an_object_store_that_fails_while_it_is_read_is_an_os_error(faulty: type[Faulty]) -> None:
    store = RemoteStore("faulty://read")
    for ask in (store.list, store.read, store.exists, store.delete, store.open):
        with pytest.raises(OSError, match="AccessDenied"):
            ask("x")
    with pytest.raises(OSError, match="AccessDenied"):
        store.write("x", b"content")
    faulty.is_down = False
    store.write("x", b"content")
    with store.open("x") as file:
        assert (file.read(3), file.tell(), file.seek(0), file.read()) == (b"con", 3, 0, b"content")
        file._file.read = store._fs._fail  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="AccessDenied"):
            file.read()


def test_an_object_store_is_asked_each_time_because_other_processes_write_in_it() -> None:
    for store in (RemoteStore("memory://listed"), RemoteStore("memory://listed").inside("replica-0")):
        assert store._fs.dircache.use_listings_cache is False


@in_loop
async def test_a_replica_more_than_there_were_to_be_takes_the_first_free_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "OPEN_AGAIN_S", (0.0,))
    monkeypatch.setattr(archive_module, "OPEN_LATER_S", 0.01)
    spec = RecordSpec(url=str(tmp_path))

    async def seated(seat: int) -> tuple[Archive, dict[str, Any]]:
        recording = Recording.of(spec, f"replica-{seat}")
        archive = await Archive.open(recording.log, describe, (), Guard(), recording)
        archive.take_up()
        archive.control("pause", {})
        counts: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        archive.keep_opening(counts.set_result)
        return archive, {} if archive.status()["recording"] else dict(await counts)

    first, _ = await seated(0)
    second, _ = await seated(1)
    first.accepted(exchange("x1"), ["rival"], {"rival": 1})
    third, counts = await seated(0)  # of three replicas where there were to be two
    assert (third.status()["recording"], counts) == (True, {})
    assert (tmp_path / "replica-2").is_dir()
    await third.close()
    await first.close()
    successor, counts = await seated(1)  # the first that is free is the one that ended: it goes on counting there
    assert counts["rival"].sampled == 1
    await successor.close()
    await second.close()
    rows = query(tmp_path, "SELECT writer, num_lost FROM controls WHERE action = 'recording_resumed' ORDER BY writer")[
        1
    ]
    assert rows == [("replica-0", 1), ("replica-2", 1)]
