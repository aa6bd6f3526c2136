"""No record, whatever a client has put into it, stops sealing, retention, erasing, SQL, exports or the audit."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.parquet as pq
import pytest

from understudy.config import RecordSpec
from understudy.errors import RecordError
from understudy.record import Control, Event, parse_feedback, scan
from understudy.record.audit import audit
from understudy.record.care import care, erase_now
from understudy.record.codec import encode, to_json, well_formed
from understudy.record.columns import row_of
from understudy.record.export import export
from understudy.record.lines import Chain, frame, segment_path
from understudy.record.recording import Recording
from understudy.record.seal import seal
from understudy.record.sources import Source
from understudy.record.sql import query
from understudy.record.store import LocalStore

from .builders import accepted, ended, feedback, open_keeper, plain
from .test_schema import EVENTS

ENTRIES: dict[str, Event] = {
    "checkpoint": Control("checkpoint", 1.0, {"n": 1, "chain": "00" * 32, "key": "00" * 32, "signature": "00" * 64}),
    "erase": Control("erase", 1.0, {"request": "x", "tag": "user", "records": [1]}),
    "retention": Control("retention", 1.0, {"before_unix_s": 1.0, "segments": [1]}),
}
HALF = "\ud800"
ABSURD = (HALF, f"x\udfff{HALF}é", -1, 1e300, -1e300, 1 << 70, 10**400, float("nan"), None, [HALF], {HALF: HALF})


def changed(value: Any, by: Any) -> Iterator[Any]:
    """The value with each one of its parts replaced, and each of its names."""
    yield by
    match value:
        case dict():
            for name, each in value.items():
                for part in changed(each, by):
                    yield value | {name: part}
            if isinstance(by, str):
                yield value | {by: by}
        case list() if value:
            yield from ([part, *value[1:]] for part in changed(value[0], by))


def log_of(folder: Path, documents: list[Mapping[str, Any]]) -> Source:
    folder.mkdir(parents=True)
    chain = Chain()
    lines = [frame(json.dumps(each, separators=(",", ":")).encode(), chain) for each in documents]
    segment_path(folder, 1).write_bytes(b"".join(lines))
    return Source.at(folder)


@pytest.mark.parametrize("by", ABSURD, ids=lambda by: repr(by)[:12])
@pytest.mark.parametrize("what", EVENTS | ENTRIES)
def test_every_field_of_every_record(tmp_path: Path, what: str, by: Any) -> None:
    whole = json.loads(encode((EVENTS | ENTRIES)[what], plain)) | {"rollout": "r1"}
    documents = list(changed(copy.deepcopy(whole), by))[1:]
    source = log_of(tmp_path / "replica-0", [*documents, whole])
    before = query(tmp_path, "SELECT count(*) FROM records")[1]
    assert before == [(len(documents) + 1,)]
    (manifest,) = seal(source, "replica-0", include_newest=True)
    assert manifest.num_records == len(documents) + 1
    assert 0.0 <= manifest.first_unix_s <= manifest.last_unix_s <= time.time()
    assert query(tmp_path, "SELECT count(*) FROM records")[1] == before
    rows = list(source.open_sealed(1).rows(["kind", "document"]))
    assert rows[-1]["kind"] == whole["kind"]  # the one that nobody has changed
    findings = audit(source, "replica-0").findings
    known = ("a record of version", "checkpoint")  # of no version that we know; and nobody has signed these
    assert [one for one in findings if not any(word in one for word in known)] == []
    open_keeper(tmp_path / "replica-0").close()


def poisoned(number: int) -> list[Event]:
    """As a client can make them, with what a server took before it looked."""
    event = accepted(number)
    facts = replace(event.exchange.facts, tags=MappingProxyType({"session": HALF, "user": "ann"}))
    late = replace(feedback(f"ex-{number}", HALF), at_unix_s=1_732_435_200_000.0)
    return [replace(event, exchange=replace(event.exchange, facts=facts)), ended(number), late]


def test_what_a_client_has_sent_is_sealed_read_exported_removed_and_erased(tmp_path: Path) -> None:
    spec = RecordSpec(url=str(tmp_path / "record"), retention="1d")
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log)
    for number in range(3):
        for event in poisoned(number):
            keeper.append(event)
    keeper.close()
    assert len(list(scan(spec.url))) == 3
    assert query(spec.url, "SELECT DISTINCT session FROM exchanges")[1] == [("\ufffd",)]
    export(scan(spec.url), "parquet", tmp_path / "out.parquet")
    assert {row["session"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()} == {"\ufffd"}
    assert list(erase_now(spec, ["user=ann"])) == ["replica-0: 9 records erased"]
    assert audit(Source.at(recording.log), "replica-0").findings == []
    (first, *_) = (Source.at(recording.log).manifest(number) for number in Source.at(recording.log).sealed())
    assert first.last_unix_s <= time.time()  # so retention reaches it


def test_an_erasure_that_cannot_be_done_is_entered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RecordSpec(url=str(tmp_path / "record"))
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log)
    for event in (accepted(1), ended(1)):
        keeper.append(event)
    keeper.close()
    entered: list[str] = []

    def broken(*_: Any, **__: Any) -> list[Any]:
        raise OSError("the store is full")

    with monkeypatch.context() as patched:
        patched.setattr("understudy.record.care.seal", broken)
        assert "the store is full" in next(iter(erase_now(spec, ["session=s1"])))
        for _ in range(3):
            with pytest.raises(OSError, match="full"):
                care(recording, lambda action, *_: entered.append(action))
    assert entered == []  # erase_now has entered it
    care(recording, lambda action, *_: entered.append(action), include_newest=True)
    assert entered == []
    assert list(scan(spec.url)) == []
    assert audit(Source.at(recording.log), "replica-0").findings == []


def test_a_retention_that_cannot_be_done_is_entered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording.of(RecordSpec(url=str(tmp_path / "record"), retention="1h"), "replica-0")
    keeper = open_keeper(recording.log)
    keeper.append(accepted(1))
    keeper.close()
    seal(Source.at(recording.log), "replica-0", include_newest=True)
    entered: list[str] = []

    def refused(*_: Any) -> None:
        raise OSError("no right to delete")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "delete", refused)
        for _ in range(3):
            with pytest.raises(OSError, match="no right"):
                care(recording, lambda action, *_: entered.append(action))
    assert entered == ["retention"]
    assert care(recording, lambda action, *_: entered.append(action))["removed"] == 1
    assert entered == ["retention"]


@pytest.mark.parametrize("at_unix_s", [1_732_435_200_000, 1e300, -1, "1e12"])
def test_a_time_far_from_now_is_refused(at_unix_s: Any) -> None:
    with pytest.raises(RecordError, match=r"at_unix_s: .* must be Unix seconds, and at most a day from now"):
        parse_feedback({"request_id": "x", "label": "good", "at_unix_s": at_unix_s}, 1_732_435_200.0)


def test_text_that_is_no_text_is_mended_at_the_edge() -> None:
    given = parse_feedback({"request_id": f"a{HALF}", "label": HALF, "name": "é\udfff"}, 7.0)
    assert (given.id, given.label, given.name, given.at_unix_s) == ("a\ufffd", "\ufffd", "é\ufffd", 7.0)
    assert well_formed("\U0001f600\u2028é") == "\U0001f600\u2028é"


def test_row_of_says_what_no_column_can_hold() -> None:
    document = to_json(EVENTS["control"], plain) | {"num_lost": 1 << 70}
    with pytest.raises(RecordError, match="num_lost"):
        row_of(json.dumps(document).encode())
