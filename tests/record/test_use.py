"""A record is of use: SQL over what is sealed and what is not, exports that others can read, feedback from files."""

from __future__ import annotations

import json
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from understudy.cli import cli
from understudy.config import RecordSpec
from understudy.errors import RecordError
from understudy.record import Control, Event, Feedback, scan
from understudy.record.audit import audit
from understudy.record.chat import label_of, messages_of
from understudy.record.columns import COLUMNS
from understudy.record.given import enter, pending, read, send
from understudy.record.lines import segment_path
from understudy.record.patterns import redact
from understudy.record.privacy import Privacy
from understudy.record.recording import Recording
from understudy.record.schema import Head
from understudy.record.scribe import Scribe
from understudy.record.seal import seal
from understudy.record.sealed import arrow_schema
from understudy.record.sources import Source
from understudy.record.sql import query
from understudy.record.store import RemoteStore, store_at
from understudy.types import State, Taken

from .builders import accepted, ended, feedback, flush, open_keeper, small_queue

CHAT = b'{"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]}'


@pytest.fixture
def url(tmp_path: Path) -> Path:
    """Two replicas, one with sealed segments and a tail in the log; every third exchange is shed."""
    for replica in range(2):
        folder = tmp_path / "record" / f"replica-{replica}"
        keeper = open_keeper(folder, max_segment_bytes=6_000, rollout="r1")
        keeper.append(Control("pause", 5.0))
        for number in range(20 * replica, 20 * replica + 20):
            event = accepted(number)
            event = replace(event, exchange=replace(event.exchange, facts=replace(event.exchange.facts, body=CHAT)))
            keeper.append(event)
            keeper.append(ended(number) if number % 3 else ended(number, state=State.SHED, reason="pressure"))
            flush(keeper)
        keeper.append(feedback(f"client-{20 * replica + 1}", "good"))
        keeper.append(Feedback("nobody", "", 3.0, 2.5, "revenue_usd"))
        keeper.close()
    seal(Source.at(tmp_path / "record" / "replica-0"), "replica-0")
    return tmp_path / "record"


def test_sql_over_everything(url: Path) -> None:
    def rows(text: str) -> list[tuple[Any, ...]]:
        return query(url, text)[1]

    assert rows("SELECT writer, count(*) FROM exchanges GROUP BY ALL ORDER BY ALL") == [
        ("replica-0", 20),
        ("replica-1", 20),
    ]
    states = "SELECT challenger, state, reason, count(*) FROM endings GROUP BY ALL ORDER BY ALL"
    assert rows(states) == [("b", "compared", None, 26), ("b", "shed", "pressure", 14)]
    assert rows("SELECT name, count(*), avg(value) FROM comparisons GROUP BY ALL") == [("top1", 26, 0.5)]
    assert rows("SELECT exchange_id, label FROM feedback WHERE label <> '' ORDER BY ALL") == [
        ("ex-1", "good"),
        ("ex-21", "good"),
    ]
    assert rows("SELECT exchange_id, id, value FROM feedback WHERE name = 'revenue_usd'") == [(None, "nobody", 2.5)] * 2
    assert rows("SELECT action, count(*) FROM controls GROUP BY ALL") == [("pause", 2)]
    text = "document->>'$.champion.answers[0].finish_reason'"
    assert rows(f"SELECT DISTINCT {text}, rollout, session IS NULL FROM exchanges") == [("stop", "r1", False)]
    figures = "SELECT DISTINCT num_prompt_tokens, num_generated_tokens, ttft_s, end_to_end_s, tags['session'] = session"
    assert rows(f"{figures} FROM exchanges") == [(3, 3, 0.25, 0.5, True)]
    took = "SELECT DISTINCT kv_peak_bytes, kv_byte_s, device_s, usd, tokens_usd FROM"
    for view in ("exchanges", "endings WHERE state = 'compared'"):
        assert rows(f"{took} {view}") == [(4096, 1024.5, 0.375, 0.25, 0.125)]
    with pytest.raises(RecordError, match="nothing_here"):
        query(url, "SELECT * FROM nothing_here")


@pytest.mark.parametrize("mode", ["full", "redacted", "none"])
def test_tokens_are_counted_where_their_ids_were_left_out_too(tmp_path: Path, mode: Any) -> None:
    def hide(text: str) -> str:
        return text.replace("e", "*")

    keeper = open_keeper(tmp_path / "replica-0", privacy=Privacy(mode, (hide,), b"secret"))
    keeper.append(accepted(1))
    keeper.append(ended(1))
    keeper.close()
    counted = "SELECT num_prompt_tokens, num_generated_tokens FROM exchanges"
    assert query(str(tmp_path), counted)[1] == [(3, 3)]
    seal(Source.at(tmp_path / "replica-0"), "replica-0", include_newest=True)
    assert query(str(tmp_path), counted)[1] == [(3, 3)]


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "store"])
def test_segments_that_were_sealed_before_there_were_these_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    url = f"memory://before-{tmp_path.name}" if remote else str(tmp_path)
    source = Source(tmp_path / "replica-0", store_at(url).inside("replica-0"))

    def live(number: int, taken: Taken) -> None:
        event = accepted(number)
        champion = replace(event.exchange.champion, taken=taken)
        keeper = open_keeper(source.log, store=source.store)
        keeper.append(replace(event, exchange=replace(event.exchange, champion=champion)))
        keeper.close()
        arrow_schema.cache_clear()
        seal(source, "replica-0", include_newest=True)
        arrow_schema.cache_clear()

    with monkeypatch.context() as before:
        for name in ("kv_peak_bytes", "kv_byte_s", "device_s", "usd", "tokens_usd"):
            before.delitem(COLUMNS, name)
        live(1, Taken())
    live(2, Taken(device_s=0.5))
    for order in ("", " DESC"):
        asked = f"SELECT exchange_id, device_s FROM exchanges ORDER BY exchange_id{order}"
        assert sorted(query(url, asked, tmp_path)[1]) == [("ex-1", None), ("ex-2", 0.5)]
    assert audit(source, "replica-0").findings == []


def test_sql_in_an_object_store(tmp_path: Path) -> None:
    url = f"memory://sql-{tmp_path.name}"
    keeper = open_keeper(tmp_path / "replica-0", store=RemoteStore(url).inside("replica-0"))
    for number in range(3):
        keeper.append(accepted(number))
    keeper.close()
    seal(Source(tmp_path / "replica-0", RemoteStore(url).inside("replica-0")), "replica-0", include_newest=True)
    assert query(url, "SELECT count(*) FROM exchanges")[1] == [(3,)]
    assert len(list(scan(url))) == 3


def test_what_is_still_in_the_log_of_a_record_in_an_object_store(tmp_path: Path) -> None:
    url, spool = f"memory://spool-{tmp_path.name}", tmp_path / "spool"
    store = RemoteStore(url).inside("replica-0")
    keeper = open_keeper(spool / "replica-0", store=store)
    keeper.append(accepted(1))
    flush(keeper)
    keeper.begin_file()
    keeper.append(accepted(2))
    keeper.append(feedback("nobody"))
    keeper.close()
    seal(Source(spool / "replica-0", store), "replica-0")
    run = CliRunner().invoke
    for more, there in (([], {"ex-1"}), (["--spool", str(spool)], {"ex-1", "ex-2"})):
        said = run(cli, ["exchanges", url, *more]).output
        assert {id for id in ("ex-1", "ex-2") if id in said} == there
        assert (run(cli, ["exchanges", url, "--show", "ex-2", *more]).exit_code == 0) == ("ex-2" in there)
        assert f"{len(there)} written" in export_from(url, tmp_path / "chat.jsonl", *more)
    assert run(cli, ["feedback", "--pending", "--to", url, "--spool", str(spool)]).output.split() == ["nobody"]


def test_an_id_that_is_recorded_as_a_pseudonym_is_found_by_itself(tmp_path: Path) -> None:
    url = tmp_path / "record"
    recording = Recording.of(RecordSpec(url=str(url), text="redacted"), "replica-0")
    keeper = open_keeper(recording.log, privacy=recording.privacy)
    keeper.append(accepted(1, client_request_id="ann@example.org"))
    keeper.append(accepted(2, client_request_id="plain"))
    keeper.close()
    assert b"ann@example.org" not in segment_path(recording.log, 1).read_bytes()
    seal(Source.at(recording.log), "replica-0", include_newest=True)
    run = CliRunner().invoke
    for where in (url, recording.log):  # the record, or the folder of one writer
        for id, found in (("ann@example.org", "ex-1"), ("plain", "ex-2")):
            shown = run(cli, ["exchanges", str(where), "--show", id])
            assert (shown.exit_code, found in shown.output) == (0, True), shown.output
            proved = run(cli, ["audit", "prove", id, "--url", str(where)])
            assert json.loads(json.loads(proved.output)["document"])["exchange_id"] == found
        assert run(cli, ["exchanges", str(where), "--show", "bob@example.org"]).exit_code == 1
    (url / "redaction.key").unlink()
    assert run(cli, ["exchanges", str(url), "--show", "ann@example.org"]).exit_code == 1
    assert run(cli, ["exchanges", str(url), "--show", "plain"]).exit_code == 0
    assert not (url / "redaction.key").exists()  # who reads makes none


def test_the_sql_command(url: Path) -> None:
    run = CliRunner().invoke
    asked = ["sql", "SELECT state, count(*) AS n FROM endings GROUP BY ALL ORDER BY ALL", "--url", str(url)]
    assert "compared" in run(cli, asked).output
    assert run(cli, [*asked, "--format", "csv"]).output.split() == ["state,n", "compared,26", "shed,14"]
    lines = run(cli, [*asked, "--format", "json"]).output.splitlines()
    assert json.loads(lines[0]) == {"state": "compared", "n": 26}


def export(url: Path, out: Path, *options: str) -> str:
    return export_from(str(url), out, *options)


def export_from(url: str, out: Path, *options: str) -> str:
    done = CliRunner().invoke(cli, ["export", url, "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_export_as_chats(url: Path, tmp_path: Path) -> None:
    assert "40 written, 0 left out" in export(url, tmp_path / "chat.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().split("\n")[:-1]]
    one = next(line for line in lines if line["metadata"]["exchange_id"] == "ex-1")
    assert [message["role"] for message in one["messages"]] == ["system", "user", "assistant"]
    assert one["messages"][-1]["content"].startswith("yes\nand")
    assert one["label"] == "good"
    assert one["metadata"]["challengers"]["b"]["answer"].startswith("yes")


def test_an_export_takes_times_as_its_siblings_do(url: Path, tmp_path: Path) -> None:
    def written(*options: str) -> str:
        return export(url, tmp_path / "chat.jsonl", *options).split(": ")[1].split(",")[0]

    assert written("--since", "2023-11-14", "--until", "2023-11-16") == "40 written"
    assert written("--since", "90m ago") == "0 written"
    assert written("--until", "2023-11-14T22:13:30+00:00") == "10 written"  # from 22:13:20.25 on, one a second
    refused = CliRunner().invoke(cli, ["export", str(url), "--out", str(tmp_path / "x"), "--since", "yesterday"])
    assert (refused.exit_code, "must be a time such as 2026-11-24" in " ".join(refused.output.split())) == (2, True)


def test_both_commands_that_write_chats_write_the_same(url: Path, tmp_path: Path) -> None:
    export(url, tmp_path / "one.jsonl")
    done = CliRunner().invoke(cli, ["exchanges", str(url), "--export", str(tmp_path / "other.jsonl")])
    assert done.exit_code == 0, done.output
    one, other = (sorted((tmp_path / name).read_text().split("\n")[:-1]) for name in ("one.jsonl", "other.jsonl"))
    assert len(one) == 40
    assert one == other


def test_export_as_parquet(url: Path, tmp_path: Path) -> None:
    export(url, tmp_path / "out.parquet", "--format", "parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert Counter(row["state"] for row in rows) == {"compared": 26, "shed": 14}
    assert {row["champion_end_to_end_s"] for row in rows} == {0.5}
    assert {(row["champion_kv_peak_bytes"], row["champion_usd"]) for row in rows} == {(4096, 0.25)}
    assert {(row["state"], row["challenger_device_s"]) for row in rows} == {("compared", 0.375), ("shed", None)}
    assert dict(next(row for row in rows if row["state"] == "compared")["comparison"]) == {"top1": 0.5}


def test_export_as_blind_tasks(url: Path, tmp_path: Path) -> None:
    export(url, tmp_path / "tasks.json", "--format", "label-studio", "--challenger", "b")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == 26
    assert Counter(task["meta"]["a"] for task in tasks).keys() == {"champion", "b"}  # in both orders
    assert "be kind" in tasks[0]["data"]["prompt"]
    assert not any("champion" in str(value) for value in tasks[0]["data"].values())


@pytest.mark.parametrize("form", ["chat", "parquet", "label-studio"])
def test_an_export_is_for_its_owner_alone(url: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "old").write_text("others can read this")
    (tmp_path / "old").chmod(0o644)
    for name in ("new", "old"):
        export(url, tmp_path / name, "--format", form)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_an_export_to_what_is_no_file_leaves_its_mode(url: Path) -> None:
    before = Path("/dev/null").stat().st_mode
    export(url, Path("/dev/null"))
    assert Path("/dev/null").stat().st_mode == before


def test_what_was_redacted_away_is_left_out_and_counted(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path / "record", privacy=Privacy("none", (redact,), b"secret"))
    keeper.append(accepted(1))
    keeper.append(ended(1))
    keeper.close()
    assert "0 written, 1 left out" in export(tmp_path / "record", tmp_path / "chat.jsonl")


def test_messages_of_every_kind_of_request() -> None:
    assert messages_of({"body": '{"prompt": "hi"}'}) == [{"role": "user", "content": "hi"}]
    assert messages_of({"body": '{"prompt": [1, 2]}', "prompt_text": "ho"}) == [{"role": "user", "content": "ho"}]
    assert messages_of({"body": "no json", "prompt_text": None}) is None


def test_feedback_from_files_into_a_record(url: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("request_id,label,value\nclient-2,bad,\nchatcmpl-22,,0.75\nnot-there,good,\n")
    given = read(file)
    assert enter(str(url), given) == (3, ["not-there"])
    assert enter(str(url), given) == (0, ["not-there"])  # again: nothing new
    views = {view["exchange_id"]: view["feedback"] for view in scan(url)}
    assert [one["label"] for one in views["ex-2"]] == ["bad"]
    assert [one["value"] for one in views["ex-22"]] == [0.75]
    assert pending(str(url)) == ["nobody", "not-there"]
    keeper = open_keeper(url / "replica-1")  # the replica that had been down comes back: its exchange is there now
    keeper.append(accepted(99, client_request_id="not-there"))
    keeper.close()
    assert pending(str(url)) == ["nobody"]


def test_more_feedback_than_the_writer_can_queue_is_all_recorded(url: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_queue(monkeypatch)
    many = [Feedback(f"late-{number}", "good", 1.0) for number in range(105)]
    assert enter(str(url), many)[0] == 105
    assert len(pending(str(url))) == 106  # and nobody
    assert enter(str(url), many)[0] == 0


def test_feedback_that_is_not_all_on_disk_is_an_error(url: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, real = [Feedback(f"late-{number}", "good", 1.0) for number in range(5)], Scribe.append

    def broken(self: Scribe, line: bytearray, event: Event) -> Head:
        if isinstance(event, Feedback) and event.id == "late-3":
            raise ValueError("it makes no record")
        return real(self, line, event)

    with monkeypatch.context() as patched:
        patched.setattr(Scribe, "append", broken)
        with pytest.raises(RecordError, match="1 events were lost"):
            enter(str(url), many)
    assert enter(str(url), many)[0] == 1  # again, and only what was missing


def test_the_feedback_command(url: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"request_id": "ex-4", "label": "good", "at_unix_s": 7}\n\n{"request_id": "who", "value": 1}\n')
    run = CliRunner().invoke
    done = run(cli, ["feedback", str(file), "--to", str(url)])
    assert "2 read, 2 new, 1 for ids not known yet\nnot known yet: who" in done.output
    assert run(cli, ["feedback", "--pending", "--to", str(url)]).output.split() == ["nobody", "who"]
    assert run(cli, ["feedback", "--to", str(url)]).exit_code == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not a JSON object"),
        ('{"label": "x"}', "line 2: request_id: must be text"),
        ('{"request_id": "x"}', "line 2: label or value"),
        ('{"request_id": "x", "value": "much"}', "line 2: value: 'much' must be a finite number"),
        ('{"request_id": "x", "score": 1}', "line 2: 'score' is not a field of feedback"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_given(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "f.jsonl").write_text('{"request_id": "x", "label": "y"}\n' + line)
    with pytest.raises(RecordError, match=says):
        read(tmp_path / "f.jsonl")


def test_of_a_files_labels_the_last_word_stands_and_the_same_file_again_changes_nothing(
    url: Path, tmp_path: Path
) -> None:
    def label(id: str) -> str | None:
        return next(label_of(view) for view in scan(url) if view["exchange_id"] == id)

    said = [("ex-2", "a", 10.0), ("ex-2", "b", 11.0), ("ex-2", "a", 12.0), ("ex-4", "a", 10.0), ("ex-4", "a", 10.0)]
    rows = [{"request_id": id, "label": word, "at_unix_s": at} for id, word, at in said]
    rows.append({"request_id": "ex-4", "label": "unhappy", "name": "csat", "at_unix_s": 13.0})
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert enter(str(url), read(tmp_path / "f.jsonl")) == (5, [])
    assert (label("ex-2"), label("ex-4")) == ("a", "a")
    assert enter(str(url), read(tmp_path / "f.jsonl")) == (0, [])
    assert enter(str(url), [Feedback("ex-2", "b", 1.0)]) == (1, [])  # news of long ago
    assert label("ex-2") == "a"
    mixed = [Feedback("ex-8", word, at) for word, at in (("a", 10.0), ("a", 30.0), ("b", 20.0))]
    assert enter(str(url), mixed) == (3, [])
    assert label("ex-8") == "a"
    assert enter(str(url), mixed) == (0, [])
    now = [Feedback("ex-6", word, 20.0) for word in "aba"]  # no times: those of a file are all read now
    assert enter(str(url), now) == (3, [])
    assert label("ex-6") == "a"


def test_a_files_labels_reach_a_server_in_the_order_of_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, float]] = []

    def post(self: httpx.Client, url: str, json: dict[str, Any]) -> httpx.Response:
        sent.append((json["label"], json["at_unix_s"]))
        return httpx.Response(200, json={"known": True})

    monkeypatch.setattr(httpx.Client, "post", post)
    mixed = [Feedback("ex-8", word, at) for word, at in (("a", 10.0), ("a", 30.0), ("b", 20.0), ("c", 20.0))]
    assert send("http://server", None, mixed) == (4, [])
    assert sent == [("a", 10.0), ("b", 20.0), ("c", 20.0), ("a", 30.0)]
