"""A sealed segment says what the log said, and a crash between any two steps of sealing loses and doubles nothing."""

from __future__ import annotations

import itertools
import stat
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from understudy.errors import RecordError
from understudy.record import RecordReader, scan
from understudy.record import seal as seal_module
from understudy.record.lines import segment_path, segments
from understudy.record.log import Disk, SegmentLog
from understudy.record.manifest import manifest_path
from understudy.record.seal import seal, sealing
from understudy.record.sources import Source
from understudy.record.store import LocalStore, RemoteStore, Store
from understudy.types import State

from .builders import accepted, ended, feedback, flush, open_keeper

NUM_EXCHANGES = 40


def fill(folder: Path, store: Store | None = None, first: int = 0) -> None:
    """Several files of the log, an exchange that is left pending, an early and a late label."""
    keeper = open_keeper(folder, max_segment_bytes=4_000, store=store)
    for number in range(first, first + NUM_EXCHANGES):
        keeper.append(accepted(number, "b", "c", offered={"b": number + 1}))
        keeper.append(ended(number, "b"))
        if number % 7:
            keeper.append(ended(number, "c", State.SHED, "pressure"))
        flush(keeper)
    keeper.append(feedback(f"client-{first}"))
    keeper.close()


def sealed_and_not(folder: Path) -> tuple[list[int], list[int]]:
    return Source.at(folder).sealed(), segments(folder)


def test_views_counts_and_finding_are_the_same_before_and_after(tmp_path: Path) -> None:
    fill(tmp_path)
    before, keeper = list(scan(tmp_path)), open_keeper(tmp_path)
    keeper.close()
    found = RecordReader(tmp_path).find("client-3")
    numbers = segments(tmp_path)
    assert len(numbers) > 5
    manifests = seal(Source.at(tmp_path), "replica-0")
    assert sealed_and_not(tmp_path) == (numbers[:-1], numbers[-1:])
    assert list(scan(tmp_path)) == before
    assert RecordReader(tmp_path).find("client-3") == found
    again = open_keeper(tmp_path)
    assert again.find("client-3") == found
    again.close()
    assert again.recovery.counts == keeper.recovery.counts
    assert again.recovery.unfinished == keeper.recovery.unfinished
    assert again.recovery.num_records == keeper.recovery.num_records
    assert [m.previous for m in manifests[1:]] == [m.sha for m in manifests[:-1]]
    assert manifests[0].first_n == 0
    assert all(m.first_n == (earlier.last_n or 0) + 1 for earlier, m in itertools.pairwise(manifests))


def test_a_record_that_was_sealed_whole_goes_on(tmp_path: Path) -> None:
    fill(tmp_path)
    seal(Source.at(tmp_path), "replica-0", include_newest=True)
    assert segments(tmp_path) == []
    fill(tmp_path, first=100)
    assert len(list(scan(tmp_path))) == 2 * NUM_EXCHANGES
    seal(Source.at(tmp_path), "replica-0", include_newest=True)
    source = Source.at(tmp_path)
    manifests = [source.manifest(number) for number in source.sealed()]
    assert [m.segment for m in manifests] == list(range(1, len(manifests) + 1))
    assert all(m.chain_before == earlier.chain for earlier, m in itertools.pairwise(manifests))


def test_places_that_a_living_index_holds_are_found_in_the_sealed_segment(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path, max_segment_bytes=2_000)
    for number in range(10):
        keeper.append(accepted(number))
        keeper.append(ended(number))
        flush(keeper)
    before = [keeper.find(f"ex-{number}") for number in range(10)]
    seal(Source.at(tmp_path), "replica-0")
    assert [keeper.find(f"ex-{number}") for number in range(10)] == before
    keeper.append(accepted(10))
    flush(keeper)
    assert len(keeper.find("ex-10")) == 1
    keeper.close()


class Crash(BaseException):
    """As a kill would: nothing may catch it."""


class CrashingStore(LocalStore):
    """Dies before or after the n-th write."""

    def __init__(self, folder: Path, fatal_write: float) -> None:
        super().__init__(folder)
        self.fatal_write = fatal_write
        self.num_writes = 0

    def write(self, path: str, content: bytes) -> None:
        if self.num_writes == self.fatal_write:
            raise Crash
        super().write(path, content)
        self.num_writes += 1
        if self.num_writes - 0.5 == self.fatal_write:
            raise Crash


@pytest.mark.parametrize("fatal_write", [number / 2 for number in range(9)])
def test_a_crash_at_any_write(tmp_path: Path, fatal_write: float) -> None:
    fill(tmp_path)
    before = list(scan(tmp_path))
    with pytest.raises(Crash):
        seal(Source(tmp_path, CrashingStore(tmp_path, fatal_write)), "replica-0")
    assert list(scan(tmp_path)) == before
    seal(Source.at(tmp_path), "replica-0")
    assert list(scan(tmp_path)) == before


def test_a_crash_between_manifest_and_retirement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    before = list(scan(tmp_path))

    def crash(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(seal_module, "retire", crash)
        with pytest.raises(Crash):
            seal(Source.at(tmp_path), "replica-0")
    assert sealed_and_not(tmp_path)[0] == [1]
    assert 1 in segments(tmp_path)  # said twice, read once
    assert list(scan(tmp_path)) == before
    keeper = open_keeper(tmp_path)
    assert keeper.recovery.num_records == NUM_EXCHANGES * 3 - 6 + 1
    keeper.close()
    seal(Source.at(tmp_path), "replica-0")
    assert list(scan(tmp_path)) == before


def test_a_reader_survives_a_segment_that_is_sealed_and_retired_under_it(tmp_path: Path) -> None:
    fill(tmp_path)
    before = list(scan(tmp_path))
    reading = scan(tmp_path)
    first = next(reading)
    seal(Source.at(tmp_path), "replica-0")
    assert [first, *reading] == before


def test_damaged_lines_are_kept_and_reported(tmp_path: Path) -> None:
    fill(tmp_path)
    path = segment_path(tmp_path, 2)
    path.write_bytes(path.read_bytes().replace(b"Say yes.", b"Say no!!", 1))
    damaged = RecordReader(tmp_path)
    before = list(damaged.iterate())
    seal(Source.at(tmp_path), "replica-0")
    reader = RecordReader(tmp_path)
    assert list(reader.iterate()) == before
    assert reader.damage.num_damaged == damaged.damage.num_damaged == 1
    table = pq.read_table(next((tmp_path / "segments").rglob("00000002.parquet")), partitioning=None)
    assert "Say no!!" in next(row for row in table.to_pylist() if row["kind"] == "damaged")["document"]


def test_files_are_partitioned_by_rollout_and_day_compressed_and_private(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    for number in (0, 90_000):
        keeper.append(accepted(number))
    keeper.close()
    seal(Source.at(tmp_path), "replica-0", include_newest=True)
    files = sorted((tmp_path / "segments").rglob("*.parquet"))
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        "segments/rollout=none/day=2023-11-14/00000001.parquet",
        "segments/rollout=none/day=2023-11-15/00000001.parquet",
    ]
    assert pq.ParquetFile(files[0]).metadata.row_group(0).column(0).compression == "ZSTD"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o600}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "segments").rglob("*") if path.is_dir()}
    assert folders == {0o700}


def test_one_sealer_at_a_time(tmp_path: Path) -> None:
    fill(tmp_path)
    with sealing(tmp_path), pytest.raises(RecordError, match="has a sealer already"):
        seal(Source.at(tmp_path), "replica-0")
    assert seal(Source.at(tmp_path), "replica-0")


def test_segments_in_an_object_store_with_the_log_beside_the_process(tmp_path: Path) -> None:
    store = RemoteStore(f"memory://bucket-{tmp_path.name}/record").inside("replica-0")
    fill(tmp_path, store)
    source = Source(tmp_path, store)
    before = list(RecordReader(source).iterate())
    seal(source, "replica-0", include_newest=True)
    assert segments(tmp_path) == []
    assert list(RecordReader(source).iterate()) == before
    fill(tmp_path, store, first=100)
    assert len(list(RecordReader(source).iterate())) == 2 * NUM_EXCHANGES


def test_a_store_that_does_not_take_a_segment_leaves_the_log_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "segments").write_text("in the way")
    before = list(scan(tmp_path))
    with pytest.raises(OSError, match="segments"):
        seal(Source.at(tmp_path), "replica-0")
    assert list(scan(tmp_path)) == before
    assert Source.at(tmp_path).sealed() == []
    assert not (tmp_path / manifest_path(1)).exists()


def test_a_log_of_version_1_goes_on_as_version_2(tmp_path: Path) -> None:
    def frame_1(document: bytes) -> bytes:
        covered = document[1:]
        return b'{"crc":"%08x",%b\n' % (zlib.crc32(covered), covered)

    segment_path(tmp_path, 1).write_bytes(
        frame_1(b'{"v":1,"kind":"feedback","id":"ex-1","label":"old","at_unix_s":1.0}')
    )
    fill(tmp_path)
    before = list(scan(tmp_path))
    assert before[0]["feedback"][0]["label"] == "old"
    manifests = seal(Source.at(tmp_path), "replica-0")
    assert (manifests[0].num_unchained, manifests[0].first_n) == (1, 0)
    assert list(scan(tmp_path)) == before


def test_the_log_begins_behind_what_is_sealed(tmp_path: Path) -> None:
    fill(tmp_path)
    seal(Source.at(tmp_path), "replica-0", include_newest=True)
    end = Source.at(tmp_path).end_of_sealed()
    log = SegmentLog(tmp_path, disk=Disk(), sealed=(end.segment, end.chain))
    assert log.chain == end.chain
    assert log.chain.n == NUM_EXCHANGES * 3 - 6 + 1
    log.close()
