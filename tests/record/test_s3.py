"""The record in an object store that speaks S3: moto's server over HTTP, and s3fs as its client, as in production."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.serving.process import wait_for

from understudy.archive import Archive
from understudy.cli import cli
from understudy.config import RecordSpec
from understudy.errors import RecordError
from understudy.lane.guard import Guard
from understudy.record import Feedback, RecordReader, given, scan, upkeep
from understudy.record.care import adopted, care, erase_now, needs_care
from understudy.record.lines import segments
from understudy.record.recording import Recording
from understudy.record.seal import seal
from understudy.record.signing import make_key
from understudy.record.sources import Source
from understudy.record.sql import query
from understudy.record.store import store_at

from .builders import ended, flush, open_keeper
from .test_care import fill, holds, of_user

if importlib.util.find_spec("moto") is None:
    pytest.skip("moto is not installed: no S3 server (extra dev)", allow_module_level=True)
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: no S3 client (extra s3)")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: it comes with moto (extra dev)")
BUCKET = "understudy"


class Server:
    """moto's server in a process of its own: flask's globals, once imported, raise when vLLM looks at all modules."""

    def __init__(self, port: int | None = None) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port or 0))
            self.port: int = probe.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._answers, 60)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "moto's server ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Nobody listens there when this returns."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An S3 server with one bucket; everything that asks for s3:// here or in a child asks it."""
    server = Server()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def spec(endpoint: Server, tmp_path: Path) -> RecordSpec:
    assert endpoint
    make_key(tmp_path / "key.pem")
    url, spool = f"s3://{BUCKET}/records/{tmp_path.name}", str(tmp_path / "spool")
    return RecordSpec(url=url, spool=spool, signing_key=str(tmp_path / "key.pem"))


def objects() -> list[str]:
    """What another client sees in the bucket."""
    listed = boto3.client("s3").list_objects_v2(Bucket=BUCKET)
    return [each["Key"] for each in listed.get("Contents", ())]


def test_a_store_is_what_it_says(endpoint: Server) -> None:
    store = store_at(f"s3://{BUCKET}/a folder").inside("replica-0")
    assert (store.list(), store.exists("x")) == ([], False)
    with pytest.raises(FileNotFoundError):
        store.read("x")
    store.write("deep/er/x=1/y.parquet", b"one")
    assert objects() == ["a folder/replica-0/deep/er/x=1/y.parquet"]  # no markers of folders
    store.write("deep/er/x=1/y.parquet", b"three")
    other = store_at(f"s3://{BUCKET}/a folder").inside("replica-0")
    assert (store.read("deep/er/x=1/y.parquet"), store.list(), store.list("deep")) == (
        b"three",
        ["deep/er/x=1/y.parquet"],
        ["deep/er/x=1/y.parquet"],
    )
    boto3.client("s3").put_object(Bucket=BUCKET, Key="a folder/replica-0/deep/", Body=b"")  # a console's marker
    assert store.list() == ["deep/er/x=1/y.parquet"]
    boto3.client("s3").put_object(Bucket=BUCKET, Key="a folder/replica-0/deep/other", Body=b"by somebody else")
    assert "deep/other" in store.list()  # nothing that was listed is remembered
    with store.open("deep/other") as file:
        assert (file.seek(3), file.read(8), file.seek(0, 2)) == (3, b"somebody"[:8], 16)
    other.delete("deep/other")
    other.delete("deep/other")
    assert not store.exists("deep/other")


def test_sealed_segments_are_there_for_everybody(spec: RecordSpec) -> None:
    recordings = [Recording.of(spec, f"replica-{number}") for number in range(2)]
    for number, recording in enumerate(recordings):
        fill(recording, 10 * number)
        made = seal(Source(recording.log, recording.store), recording.writer, sign=recording.sign)
        assert len(made) > 2
        assert len(segments(recording.log)) == 1
        assert holds(recording) == []
    inside = spec.url.removeprefix(f"s3://{BUCKET}/")
    assert any(f"{inside}/replica-1/segments/rollout=none/day=" in key for key in objects())
    assert f"{inside}/replica-0/manifests/00000001.json" in objects()
    whole = query(spec.url, "SELECT writer, count(*) FROM exchanges GROUP BY ALL ORDER BY ALL", spec.folder)[1]
    assert whole == [("replica-0", 10), ("replica-1", 10)]
    views = list(scan(spec.url))  # elsewhere: what is sealed and nothing else
    assert 10 < len(views) < 20
    assert all(view["feedback"] for view in views if view["exchange_id"] != views[-1]["exchange_id"])
    done = CliRunner().invoke(cli, ["audit", "verify", spec.url, "--spool", str(spec.folder)])
    assert (done.exit_code, "nothing was found" in done.output) == (0, True), done.output


def test_a_changed_object_is_found(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    fill(recording)
    seal(Source(recording.log, recording.store), "replica-0", sign=recording.sign)
    paths = recording.store.list("segments")
    recording.store.write(paths[0], recording.store.read(paths[1]))
    assert any("segment 1" in one for one in holds(recording))
    recording.store.delete(paths[0])
    assert any("its files are gone, and no entry says" in one for one in holds(recording))


def test_an_orphaned_log_is_adopted_by_a_process_of_its_own(spec: RecordSpec) -> None:
    mine, left = Recording.of(spec, "replica-0"), Recording.of(spec, "replica-7")
    fill(left, pending=9)
    keeper = open_keeper(mine.log, store=mine.store, signer=mine.signer)
    done = asyncio.run(upkeep.run(mine, lambda *_: None, adopting=True))
    keeper.close()
    assert done["adopted"] == ["replica-7"]
    assert segments(left.log) == []
    states = {view["exchange_id"]: view["challengers"]["b"]["state"] for view in scan(spec.url)}
    assert (len(states), states["ex-9"], states["ex-8"]) == (10, "expired", "compared")
    assert holds(left) == []


def test_erasing_and_retention(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    fill(recording)
    seal(Source(recording.log, recording.store), "replica-0", include_newest=True, sign=recording.sign)
    reader = RecordReader(Source(recording.log, recording.store))
    assert list(erase_now(spec, ["user=ann"], by="bob"))[-1] == "replica-0: 15 records erased"
    seal(Source(recording.log, recording.store), "replica-0", include_newest=True, sign=recording.sign)
    assert sorted(view["exchange_id"] for view in scan(spec.url)) == [f"ex-{number}" for number in (0, 2, 4, 6, 8)]
    reader.source.forget()
    assert reader.find("ex-1") == []
    assert query(spec.url, "SELECT actor FROM controls WHERE action = 'erase'")[1] == [("bob",)]
    assert holds(recording) == []
    strict = replace(spec, retention="30d")
    recording = Recording.of(strict, "replica-0")
    assert needs_care(recording)
    with adopted(recording) as enter:
        assert care(recording, enter)["removed"] > 0
    assert list(scan(spec.url)) == []
    assert holds(recording) == []


def test_what_is_due_costs_the_same_however_long_the_record_is(
    spec: RecordSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica asks once a minute, and each request has its price."""
    recording = Recording.of(replace(spec, retention="36500d"), "replica-0")
    costs = []
    for first in (0, 10):
        fill(recording, first)
        seal(Source(recording.log, recording.store), "replica-0", include_newest=True)
        asked: list[str] = []
        with monkeypatch.context() as patched:
            for name in ("read", "list", "exists"):
                count_calls(patched, type(recording.store), name, asked)
            assert not needs_care(recording)
        costs.append(len(asked))
    assert costs[0] == costs[1] <= 4


def count_calls(patched: pytest.MonkeyPatch, kind: type, name: str, calls: list[str]) -> None:
    real = getattr(kind, name)

    def counted(*arguments: Any) -> Any:
        calls.append(name)
        return real(*arguments)

    patched.setattr(kind, name, counted)


def test_feedback_without_a_server(spec: RecordSpec) -> None:
    recording = Recording.of(spec, "replica-0")
    fill(recording)
    seal(Source(recording.log, recording.store), "replica-0", include_newest=True)
    given.enter(spec.url, [Feedback("client-3", "late", 5.0)], spec.spool)
    other = Recording.of(spec, given.WRITER)
    seal(Source(other.log, other.store), other.writer, include_newest=True)
    view = next(view for view in scan(spec.url) if view["exchange_id"] == "ex-3")
    assert "late" in [each["label"] for each in view["feedback"]]


def test_a_store_that_goes_away_leaves_all_in_the_log_until_it_is_back(spec: RecordSpec, endpoint: Server) -> None:
    recording = Recording.of(spec, "replica-0")
    keeper = open_keeper(recording.log, store=recording.store, signer=recording.signer, max_segment_bytes=6_000)
    endpoint.stop()
    for number in range(10):
        keeper.append(of_user(number, "ann"))
        keeper.append(ended(number))
        flush(keeper)
    assert (keeper.health()[0], keeper.num_lost) == (True, 0)
    before = segments(recording.log)
    assert len(before) > 2
    with pytest.raises(RecordError, match="caring for the record"):
        asyncio.run(upkeep.run(recording, lambda *_: None))
    assert segments(recording.log) == before
    with s3_again(endpoint.port):
        done = asyncio.run(upkeep.run(recording, lambda *_: None))
        assert done["done"]["sealed"] == len(before) - 1
        keeper.close()
        assert segments(recording.log) == before[-1:]
        assert query(spec.url, "SELECT count(*) FROM endings", spec.folder)[1] == [(10,)]
        assert holds(recording) == []


@contextmanager
def s3_again(port: int) -> Iterator[None]:
    """The server of before, at the same place, and empty: moto forgets."""
    again = Server(port)
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield
    finally:
        again.stop()


def test_a_start_without_the_store_serves_says_so_and_counts_what_is_lost(spec: RecordSpec, endpoint: Server) -> None:
    recording = Recording.of(spec, "replica-0")
    endpoint.stop()

    async def live() -> Mapping[str, Any]:
        archive = await Archive.open(recording.log, dict, (), Guard(), recording)
        archive.take_up()
        archive.control("pause", {})
        status = archive.status()
        await archive.close()
        return status

    status = asyncio.run(live())
    assert (status["recording"], status["lost"]) == (False, 1)
    assert "nothing is recorded: s3://" in status["detail"]
