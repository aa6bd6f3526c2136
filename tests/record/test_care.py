"""Retention, erasing and adoption: what is removed is entered first, gone afterwards, and the audit still holds."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from click.testing import CliRunner

from understudy.cli import cli
from understudy.config import RecordSpec
from understudy.errors import RecordError
from understudy.record import Accepted, Control, Event, Feedback, RecordKeeper, erase, given, scan, upkeep
from understudy.record.audit import audit
from understudy.record.care import adopt, adopted, care, erase_now, needs_care, root_of
from understudy.record.lines import segments
from understudy.record.manifest import write_manifest
from understudy.record.recording import Recording
from understudy.record.signing import make_key
from understudy.record.sources import Source
from understudy.types import State

from .builders import accepted, ended, feedback, flush, open_keeper, small_queue

SECRET = b"the quick brown fox"


@pytest.fixture
def spec(tmp_path: Path) -> RecordSpec:
    make_key(tmp_path / "key.pem")
    return RecordSpec(url=str(tmp_path / "record"), signing_key=str(tmp_path / "key.pem"))


def of_user(number: int, user: str) -> Event:
    event = accepted(number)
    facts = replace(event.exchange.facts, tags=MappingProxyType({"user": user, "session": f"s{number}"}))
    return replace(event, exchange=replace(event.exchange, facts=facts, prompt_text=f"{user} says {SECRET.decode()}"))


def fill(recording: Recording, first: int = 0, *, pending: int | None = None) -> None:
    """Ten exchanges of two users, in several files; one may be left pending."""
    keeper = open_keeper(recording.log, store=recording.store, signer=recording.signer, max_segment_bytes=6_000)
    for number in range(first, first + 10):
        keeper.append(of_user(number, "ann" if number % 2 else "bob"))
        if number != pending:
            keeper.append(ended(number))
        keeper.append(feedback(f"client-{number}"))
        flush(keeper)
    keeper.close()


def holds(recording: Recording) -> list[str]:
    """The audit's findings."""
    assert recording.signer is not None
    source = Source(recording.log, recording.store)
    return audit(source, recording.writer, recording.signer.public_key).findings


def ids(url: str) -> list[str]:
    return sorted(view["exchange_id"] for view in scan(url))


def everything(spec: RecordSpec) -> bytes:
    """All texts of a record, decompressed, and every byte of its files."""
    parts = [path.read_bytes() for path in Path(spec.url).rglob("*") if path.is_file()]
    for folder in Path(spec.url).iterdir():
        if folder.is_dir() and (folder / "manifests").is_dir():
            source = Source.at(folder)
            for number in source.sealed():
                rows = source.open_sealed(number).rows(["document", "tags", "label", "request_id", "client_request_id"])
                parts += [repr(row).encode() for row in rows]
    return b"\n".join(parts)


def test_erasing_by_tag(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    fill(recording)
    counts = recovered(recording)
    assert b"ann says" in everything(spec)
    said = list(erase_now(spec, ["user=ann"]))
    assert said == ["replica-0: 15 records erased"]  # five exchanges: accepted, ended, feedback by the client's id
    assert ids(spec.url) == [f"ex-{number}" for number in (0, 2, 4, 6, 8)]
    content = everything(spec)
    assert b"ann" not in content.replace(b"channel", b"")
    assert b"client-3" not in content
    assert b"bob says" in content
    assert holds(recording) == []
    assert recovered(recording) == counts  # counts are no text
    assert list(erase_now(spec, ["user=ann"])) == ["replica-0: 0 records erased"]
    keeper = RecordKeeper.open(recording.log, describe_parameters=dict, store=recording.store)
    assert keeper.find("ex-3") == []
    assert len(keeper.find("ex-2")) == 1
    keeper.close()


def recovered(recording: Recording) -> Mapping[str, Any]:
    keeper = open_keeper(recording.log, store=recording.store)
    keeper.close()
    return keeper.recovery.counts


def test_erasing_while_a_server_writes_and_what_was_on_its_way(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log, store=recording.store, signer=recording.signer)
    keeper.append(of_user(1, "ann"))
    flush(keeper)
    before = keeper.find("ex-1")
    assert before
    (said,) = erase_now(spec, ["user=ann"])
    assert "has a writer already" in said
    assert needs_care(recording)

    def enter(action: str, detail: Mapping[str, Any], actor: str | None = None) -> None:
        keeper.enter(Control(action, time.time(), detail, actor=actor))

    care(recording, enter)
    assert keeper.find("ex-1") == []
    keeper.append(ended(1))  # the challenger was at it when the request came
    flush(keeper)
    done = care(recording, enter)
    assert done["erased"] == 1
    keeper.append(of_user(2, "bob"))
    keeper.close()
    assert ids(spec.url) == ["ex-2"]
    assert b"ann" not in everything(spec)
    assert holds(recording) == []


def test_what_a_server_has_found_before_is_erased_from_its_memory_too(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log, store=recording.store, signer=recording.signer)

    def enter(action: str, detail: Mapping[str, Any], actor: str | None = None) -> None:
        keeper.enter(Control(action, time.time(), detail, actor=actor))

    for event in (of_user(1, "ann"), ended(1), of_user(2, "bob"), ended(2)):
        keeper.append(event)
    flush(keeper)
    enter("pause", {})
    assert care(recording, enter)["sealed"] == 1
    assert keeper.find("ex-1")  # from the sealed segment, whose row groups are in memory now
    erase_requests(spec, "user=ann")
    assert care(recording, enter)["erased"] == 2
    assert keeper.find("ex-1") == []
    assert keeper.find("ex-2")
    keeper.close()


def erase_requests(spec: RecordSpec, tag: str) -> None:
    name, value = erase.check_tag(tag)
    erase.request(root_of(Recording.of(spec, "")), name, value, Recording.of(spec, "").privacy)


def test_feedback_in_another_writers_folder_is_erased(spec: RecordSpec) -> None:
    first, second = (Recording.of(spec, f"replica-{number}") for number in range(2))
    fill(first)
    fill_feedback(second, "by request", "by client")
    given.enter(spec.url, [Feedback("ex-1", "offline of ann", 1.0), Feedback("ex-2", "offline of bob", 2.0)])
    said = list(erase_now(spec, ["user=ann"]))
    assert said == ["feedback: 1 records erased", "replica-0: 15 records erased", "replica-1: 2 records erased"]
    content = everything(spec)
    for gone in (b"offline of ann", b"by request", b"by client", b"chatcmpl-1", b"client-1"):
        assert gone not in content
    assert b"offline of bob" in content
    assert [holds(recording) for recording in (first, second)] == [[], []]
    fill_feedback(second, "one more", "one more")  # the rows that had these ids are gone
    assert list(erase_now(spec, ["user=nobody"]))[-1] == "replica-1: 2 records erased"


def fill_feedback(recording: Recording, by_request: str, by_client: str) -> None:
    keeper = open_keeper(recording.log, store=recording.store, signer=recording.signer)
    keeper.append(Feedback("chatcmpl-1", by_request, 1.0))
    keeper.append(Feedback("client-1", by_client, 2.0))
    keeper.close()


def test_feedback_that_has_the_id_in_clear_belongs_to_its_pseudonym(spec: RecordSpec) -> None:
    redacting = Recording.of(replace(spec, text="redacted"), "replica-0")
    keeper = open_keeper(redacting.log, store=redacting.store, privacy=redacting.privacy)
    event = of_user(1, "ann")
    assert isinstance(event, Accepted)
    facts = replace(event.exchange.facts, client_request_id="ann@example.com")
    keeper.append(replace(event, exchange=replace(event.exchange, facts=facts)))
    keeper.close()
    keeper = open_keeper(Recording.of(spec, "replica-1").log)  # in full
    keeper.append(Feedback("ann@example.com", "in clear", 1.0))
    keeper.close()
    # with the "orphaned" of the one that took the folder
    assert list(erase_now(spec, ["user=ann"])) == ["replica-0: 2 records erased", "replica-1: 1 records erased"]
    assert b"ann@example.com" not in everything(spec)


def test_a_writer_that_cannot_be_read_leaves_the_request_due_and_the_others_erased(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    fill(recording)
    (Path(spec.url) / "replica-9" / "manifests").mkdir(parents=True)
    broken = Path(spec.url) / "replica-9" / "manifests" / "00000001.json"
    broken.write_text("{}")
    assert "replica-0: 15 records erased" in list(erase_now(spec, ["user=ann"]))
    (one,) = erase.requests(root_of(recording))
    assert erase.served(one, recording.store).looked_unix_s == 0


def test_a_server_that_was_down_while_the_request_was_young_looks_again(
    spec: RecordSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log)
    keeper.append(of_user(1, "ann"))
    keeper.close()
    assert list(erase_now(spec, ["user=ann"])) == ["replica-0: 2 records erased"]  # with "orphaned", as above
    keeper = open_keeper(recording.log)
    keeper.append(ended(1))  # was on its way; then the server was down for an hour
    keeper.close()
    now_unix_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_unix_s + 3600)
    assert needs_care(recording, is_orphan=True)
    with adopted(recording) as enter:
        assert care(recording, enter)["erased"] == 1
    assert ids(spec.url) == []
    (one,) = erase.requests(root_of(recording))
    assert not erase.is_due(one, recording.store)


def test_what_is_meant_is_noted_before_it_is_gone(spec: RecordSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording.of(spec, "replica-0")
    fill(recording)
    fill_feedback(Recording.of(spec, "replica-1"), "by request", "by client")
    real = erase.note_served

    def killed(one: erase.Erasure, store: Any, done: erase.Served) -> None:
        if done.looked_unix_s:
            raise RecordError("killed")
        real(one, store, done)

    with monkeypatch.context() as patched:
        patched.setattr(erase, "note_served", killed)
        assert "killed" in next(erase_now(spec, ["user=ann"]))
    assert list(erase_now(spec, ["user=nobody"]))[-1] == "replica-1: 2 records erased"


def test_nothing_is_erased_that_could_not_be_entered(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    fill(recording)

    def full(action: str, detail: Mapping[str, Any], actor: str | None = None) -> None:
        raise RecordError("the disk is full")

    erase_now_requests_only(spec)
    with pytest.raises(RecordError, match="the disk is full"):
        care(recording, full)
    assert len(ids(spec.url)) == 10
    assert needs_care(recording)


def erase_now_requests_only(spec: RecordSpec) -> None:
    keeper = open_keeper(Path(spec.url) / "replica-0")
    assert "has a writer" in next(erase_now(spec, ["user=ann"]))
    keeper.close()


def test_retention_removes_segments_and_keeps_manifests_and_counts(spec: RecordSpec) -> None:
    recording = Recording.of(replace(spec, retention="30d"), "replica-0")  # the builders' exchanges are of 2023
    fill(recording, pending=3)
    counts = recovered(recording)
    with adopted(recording) as enter:
        done = care(recording, enter)
    assert done["removed"] > 2
    assert not list(Path(spec.url).rglob("segments/**/*.parquet"))
    assert recovered(recording)["b"] == counts["b"].expire_pending()
    assert holds(recording) == []
    assert ids(spec.url) == ["ex-9"]  # which was in the newest file
    with adopted(recording) as enter:
        assert care(recording, enter)["removed"] == 0


def test_a_time_of_the_next_century_does_not_keep_what_follows(spec: RecordSpec) -> None:
    """Manifests of earlier versions have a client's times as they came."""
    recording = Recording.of(replace(spec, retention="30d"), "replica-0")
    fill(recording)
    with adopted(recording) as enter:
        assert care(replace(recording, spec=spec), enter)["removed"] == 0  # no retention
    source = Source(recording.log, recording.store)
    before = source.sealed()
    manifest = source.manifest(before[0])
    of_then = replace(manifest, last_unix_s=4e9, sealed_unix_s=manifest.last_unix_s + 60.0)
    write_manifest(recording.store, of_then)
    assert needs_care(recording)
    with adopted(recording) as enter:
        assert care(recording, enter)["removed"] > 2
    assert not list(Path(spec.url).rglob(f"segments/**/{before[0]:08d}.parquet"))


def test_an_orphaned_log_is_adopted_and_a_living_one_is_not(spec: RecordSpec) -> None:
    mine, orphan, living = (Recording.of(spec, f"replica-{number}") for number in range(3))
    fill(orphan, pending=4)
    keeper = open_keeper(living.log)
    keeper.append(accepted(77))
    flush(keeper)
    mine.log.mkdir(parents=True)
    assert adopt(mine, lambda name: Recording.of(spec, name)) == (["replica-1"], {})
    assert segments(orphan.log) == []
    views = {view["exchange_id"]: view for view in scan(spec.url)}
    assert views["ex-4"]["challengers"]["b"]["state"] == "expired"
    assert views["ex-4"]["challengers"]["b"]["detail"] == "orphaned"
    assert views["ex-77"]["challengers"]["b"]["state"] == "pending"
    assert holds(orphan) == []
    assert adopt(mine, lambda name: Recording.of(spec, name)) == ([], {})  # there is nothing left to do
    keeper.append(ended(77))
    keeper.close()
    again = open_keeper(orphan.log)  # its replica comes back
    assert again.recovery.unfinished == ()
    assert (again.recovery.counts["b"].sampled, again.recovery.counts["b"].expired) == (10, 1)
    again.append(accepted(100))
    again.append(ended(100, state=State.CANCELLED))
    again.close()
    assert holds(orphan) == []


def test_an_orphan_with_more_unfinished_than_the_writer_can_queue_is_ended_whole(
    spec: RecordSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, orphan = Recording.of(spec, "replica-0"), Recording.of(spec, "replica-1")
    keeper = open_keeper(orphan.log)
    for number in range(105):
        keeper.append(accepted(number))
    keeper.close()
    small_queue(monkeypatch)
    assert adopt(mine, lambda name: Recording.of(spec, name)) == (["replica-1"], {})
    assert Counter(view["challengers"]["b"]["state"] for view in scan(spec.url)) == {"expired": 105}


def test_an_orphan_that_cannot_be_cared_for_is_said_and_stops_no_other(spec: RecordSpec) -> None:
    mine, bad, worse, good = (Recording.of(spec, f"replica-{number}") for number in range(4))
    for orphan in (bad, worse, good):
        fill(orphan)
    (bad.log / "segments").write_text("in the way")  # OSError
    (worse.log / "manifests").mkdir()
    (worse.log / "manifests" / "00000001.json").write_text("{}")  # RecordError
    mine.log.mkdir(parents=True)
    taken, failed = adopt(mine, lambda name: Recording.of(spec, name))
    assert taken == ["replica-3"]
    assert sorted(failed) == ["replica-1", "replica-2"]
    with pytest.raises(RecordError, match="replica-2"):
        asyncio.run(upkeep.run(mine, lambda *_: None, adopting=True))
    said = list(erase_now(spec, ["user=ann"]))
    assert ["NOT erased" in line for line in said] == [True, True, False]


def test_in_a_process_of_its_own(spec: RecordSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatty = """
import os, sys
assert os.nice(0) == 19 or "upkeep" not in vars(sys.modules["__main__"])  # in the child
print("hello")
def redact(text):
    return text
"""
    (tmp_path / "chatty.py").write_text(chatty)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))
    spec = replace(spec, text="redacted", redactors=("chatty:redact",))
    recording, orphan = Recording.of(spec, "replica-0"), Recording.of(spec, "replica-1")
    fill(orphan)
    keeper = open_keeper(recording.log, signer=recording.signer, max_segment_bytes=1_500)
    for number in range(20, 26):
        keeper.append(of_user(number, "ann"))
        flush(keeper)
    assert len(segments(recording.log)) > 2
    list(erase_now(spec, ["session=s21"]))
    entered = []

    def enter(action: str, detail: Mapping[str, Any], actor: str | None = None) -> None:
        entered.append(action)
        keeper.enter(Control(action, time.time(), detail, actor=actor))

    done = asyncio.run(upkeep.run(recording, enter, adopting=True))
    assert done["adopted"] == ["replica-1"]
    assert done["done"]["erased"] == 1
    assert entered == ["erase"]
    assert len(segments(recording.log)) == 1

    def full(action: str, detail: Mapping[str, Any], actor: str | None = None) -> None:
        raise RecordError("the disk is full")

    list(erase_now(spec, ["session=s22"]))
    with pytest.raises(RecordError, match="the disk is full"):
        asyncio.run(upkeep.run(recording, full))
    keeper.close()
    assert "ex-22" in ids(spec.url)
    assert "ex-21" not in ids(spec.url)


def test_the_command(spec: RecordSpec) -> None:
    fill(Recording.of(spec, "replica-0"))
    done = CliRunner().invoke(cli, ["erase", spec.url, "--session", "s3"])
    assert (done.exit_code, done.output) == (0, "replica-0: 3 records erased\n")
    assert CliRunner().invoke(cli, ["erase", spec.url]).exit_code == 2
    with pytest.raises(RecordError, match="must be name=value"):
        list(erase_now(spec, ["user"]))
