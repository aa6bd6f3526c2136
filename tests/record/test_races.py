"""Who reads a record while it is sealed, erased and removed sees all of it, once, and accuses nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from understudy.config import RecordSpec
from understudy.record import Control
from understudy.record import audit as audit_module
from understudy.record import sql as sql_module
from understudy.record.audit import audit
from understudy.record.care import care, retain, root_of
from understudy.record.erase import request
from understudy.record.lines import segments
from understudy.record.recording import Recording
from understudy.record.seal import seal
from understudy.record.sources import Source
from understudy.record.sql import query

from .builders import accepted, ended, flush, open_keeper

NUM_EXCHANGES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six exchanges in six files of the log; the newest is being written."""
    keeper = open_keeper(tmp_path / "replica-0")
    for number in range(NUM_EXCHANGES):
        keeper.begin_file()
        keeper.append(accepted(number))
        keeper.append(ended(number))
        flush(keeper)
    keeper.close()
    return tmp_path / "replica-0"


def seals_before_it_lists(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def racing(log: Path) -> list[int]:
        seal(Source.at(log), "replica-0")
        return segments(log)

    monkeypatch.setattr(module, "segments", racing)


def seals_after_it_has_listed(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Source.sealed

    def racing(source: Source) -> list[int]:
        found = real(source)
        monkeypatch.setattr(Source, "sealed", real)
        seal(Source.at(source.log), "replica-0")
        return found

    monkeypatch.setattr(Source, "sealed", racing)


WHEN: tuple[Callable[..., None], ...] = (seals_before_it_lists, seals_after_it_has_listed)


@pytest.mark.parametrize("race", WHEN)
def test_sql_over_what_is_sealed_just_now(folder: Path, race: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    race(sql_module, monkeypatch)
    assert query(folder, "SELECT count(*), count(DISTINCT exchange_id) FROM exchanges")[1] == [(6, 6)]


@pytest.mark.parametrize("race", WHEN)
def test_the_audit_of_what_is_sealed_just_now(folder: Path, race: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    race(audit_module, monkeypatch)
    done = audit(Source.at(folder), "replica-0")
    assert (done.findings, done.num_records) == ([], 2 * NUM_EXCHANGES)


@pytest.mark.parametrize("what", ["erase", "retention"])
def test_the_audit_of_what_is_taken_out_just_now(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry is made in a file of the log that was not there when the audit listed them."""
    spec = RecordSpec(url=str(tmp_path / "record"), retention="1h" if what == "retention" else None)
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log)
    for event in (accepted(1), ended(1)):
        keeper.append(event)
    flush(keeper)
    keeper.begin_file()
    keeper.append(accepted(2))
    flush(keeper)
    seal(Source.at(recording.log), "replica-0")
    if what == "erase":
        request(root_of(recording), "session", "s1", recording.privacy)
    real = Source.sealed

    def racing(source: Source) -> list[int]:
        found = real(source)
        monkeypatch.setattr(Source, "sealed", real)
        done = care(recording, lambda action, detail, *_: keeper.enter(Control(action, time.time(), detail)))
        assert done["erased" if what == "erase" else "removed"]
        return found

    monkeypatch.setattr(Source, "sealed", racing)
    assert audit(Source.at(recording.log), "replica-0").findings == []
    keeper.close()


@contextmanager
def busy(*steps: Callable[[], object]) -> Iterator[Future[None]]:
    """These steps again and again in a thread of their own; what one raises is raised here."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for step in steps:
                step()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield working
        finally:
            stop.set()
        working.result()


def test_readers_beside_a_server_that_seals_erases_and_removes(tmp_path: Path) -> None:
    spec = RecordSpec(url=str(tmp_path / "record"), retention="1h")
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log)

    def enter(action: str, detail: Mapping[str, Any], *_: Any) -> None:
        keeper.enter(Control(action, time.time(), detail))

    numbers, written = iter(range(100_000)), [0]

    def write() -> None:
        number = next(numbers)
        keeper.append(accepted(number))
        keeper.append(ended(number))
        keeper.begin_file()
        flush(keeper)
        written[0] += 1

    def forget() -> None:
        request(root_of(recording), "session", f"s{next(numbers)}", recording.privacy)

    def look_after() -> None:
        care(recording, enter)
        retain(recording, Source(recording.log, recording.store), enter, time.time())

    write()
    with busy(write, write, look_after, forget) as working:
        looks = 0
        while not working.done() and (
            looks < 12 or written[0] < 20
        ):  # they may be given very unequal shares of the machine
            looks += 1
            counted = query(spec.url, "SELECT count(*) - count(DISTINCT n) FROM records")[1]
            assert counted == [(0,)]
            assert audit(Source.at(recording.log), "replica-0").findings == []
    keeper.close()
