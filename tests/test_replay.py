"""What of a record can be replayed, and why the rest cannot. Engines: tests/serving/test_offline.py."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.builders import Ear, Offer, exchange, in_loop, shadow_spec, turns
from tests.record.builders import accepted, ended, feedback, open_keeper

from understudy import replay_run
from understudy.browse.champion import champion_in
from understudy.engines.fake import FakeEngine
from understudy.errors import ConfigError, RecordError, Unsupported
from understudy.lane.lane import Lane
from understudy.record import Control, scan
from understudy.record.seal import seal
from understudy.record.sources import Source
from understudy.record.store import RemoteStore
from understudy.replay_run import finished, replayable, run
from understudy.types import Comparison, Floor, State

IDENTITY = {"champion": {"name": "champion", "model": "org/lead", "engine_args": {"tokenizer": "org/words"}}}


def write(folder: Path, *events: Any, **options: Any) -> Path:
    keeper = open_keeper(folder / "replica-0", **options)
    for event in events:
        keeper.append(event)
    asyncio.run(keeper.flush())
    keeper.close()
    return folder


def restore(described: Mapping[str, Any]) -> Any:
    if "regex" in described:
        raise Unsupported("parameters_not_recorded", "no regex")
    return ("restored", dict(described))


def replayed(record: Path, only: str | None = None) -> tuple[list[Any], Counter[str]]:
    left_out: Counter[str] = Counter()
    return list(replayable(scan(record), restore, left_out, only)), left_out


def test_exchanges_come_back_with_their_parameters_labels_and_facts(tmp_path: Path) -> None:
    record = write(tmp_path, accepted(1), ended(1), feedback("ex-1", "bad"), feedback("ex-1", "good"))
    (found,), left_out = replayed(record)
    offered = found.offered
    assert [(each.id, each.label) for each in found.feedback] == [("ex-1", "bad"), ("ex-1", "good")]
    whole = offered.complete()
    assert (offered.exchange_id, offered.unsupported, offered.shadow_off) == ("ex-1", None, False)
    assert whole.parameters == ("restored", {"temperature": 0.0})
    assert whole.facts.session == "s1"
    assert whole.champion.prompt_token_ids == (1, 2, 3)
    assert not left_out


def test_what_was_shed_for_lack_of_time_is_replayed_and_what_was_no_exchange_is_not(tmp_path: Path) -> None:
    record = write(
        tmp_path,
        accepted(1), ended(1, state=State.SHED, reason="queue_full"),
        accepted(2), ended(2, state=State.SHED, reason="beam_search"),
        accepted(3, parameters={"regex": "x"}), ended(3),
        accepted(4),
    )  # fmt: skip
    found, left_out = replayed(record)
    assert sorted(each.offered.exchange_id for each in found) == ["ex-1", "ex-4"]
    assert left_out == {
        "no challenger could have met it (beam_search)": 1,
        "its parameters are not recorded in full (no regex)": 1,
    }


def test_an_exchange_comes_back_with_the_noise_floor_that_it_had(tmp_path: Path) -> None:
    def with_floor(number: int, challenger: str, floor: Floor | None) -> Any:
        event = ended(number, challenger)
        return replace(event, ending=replace(event.ending, floor=floor))

    measured = Floor(comparison=Comparison({"exact_match": 1.0}))
    record = write(
        tmp_path,
        accepted(1, "a", "b"), with_floor(1, "a", Floor(reason="late")), with_floor(1, "b", measured),
        accepted(2), with_floor(2, "b", Floor(reason="late")),
        accepted(3), ended(3),
    )  # fmt: skip
    found, _ = replayed(record)
    floors = {each.offered.exchange_id: each.floor for each in found}
    assert floors == {"ex-1": measured, "ex-2": Floor(reason="late"), "ex-3": None}


def test_another_champions_answers_are_left_out(tmp_path: Path) -> None:
    record = write(tmp_path, accepted(1), ended(1))
    assert replayed(record, only="champion")[1] == {}
    assert replayed(record, only="newer")[1] == {"another champion answered it (champion)": 1}


@pytest.mark.parametrize(("mode", "word"), [("redacted", "Say"), ("redacted", "and"), ("none", "")])
def test_what_was_redacted_is_left_out_and_counted(mode: Any, word: str) -> None:
    """A hit in the prompt, one in the answer alone, and no text at all."""
    from understudy.record.privacy import Privacy

    privacy = Privacy(mode, [lambda text: text.replace(word, "[hit]")], b"secret")
    views = [privacy.apply(dict(document)) for document in documents()]
    left_out: Counter[str] = Counter()
    assert list(replayable(iter(views), restore, left_out)) == []
    assert left_out == {"its text was redacted, or never recorded": 1}


def documents() -> list[dict[str, Any]]:
    """One exchange as it is handed to the writer, and as a view has it."""
    from tests.record.builders import plain

    from understudy.record.codec import to_json

    return [to_json(accepted(1), plain) | {"challengers": {}, "feedback": []}]


def test_a_record_names_its_champion(tmp_path: Path) -> None:
    record = write(tmp_path / "new", Control("identity", 1.0, IDENTITY), accepted(1), ended(1))
    assert champion_in(str(record)) == {
        "model": "org/lead",
        "name": "champion",
        "engine_args": {"tokenizer": "org/words"},
    }
    assert champion_in(str(write(tmp_path / "old", accepted(1)))) is None
    keeper = open_keeper(record / "replica-1")  # of a time when there were two
    keeper.append(Control("identity", 0.5, {"champion": {"name": "champion", "model": "org/before"}}))
    keeper.close()
    found = champion_in(str(record))
    assert found is not None
    assert found["model"] == "org/lead"


def test_what_an_interrupted_replay_has_done_is_not_done_again(tmp_path: Path) -> None:
    record = write(
        tmp_path,
        accepted(1, "a", "b"), ended(1, "a"), ended(1, "b"),
        accepted(2, "a", "b"), ended(2, "a"),
        accepted(3, "a", "b"), ended(3, "a"), ended(3, "b", State.EXPIRED),
    )  # fmt: skip
    assert finished(record, ["a", "b"]) == {"ex-1"}
    assert finished(record, ["a"]) == {"ex-1", "ex-2", "ex-3"}
    assert finished(record, ["a", "b", "new"]) == set()
    assert finished(tmp_path / "nowhere", ["a"]) == set()


def start(record: str, out: Path, **more: Any) -> Any:
    options: dict[str, Any] = {
        "since": None, "until": None, "concurrency": 2, "gate": False, "label_pattern": None, "config": None,
        "champion": "m", "challengers": ("n",), "engine_args": None, "placement": None,
    }  # fmt: skip
    return run(record, out=out, **(options | more))


def test_wrong_starts_are_told_before_any_engine_is_asked_for(tmp_path: Path) -> None:
    record = write(tmp_path / "out" / "record", accepted(1), ended(1))
    with pytest.raises(ConfigError, match=r"--out: .* must not hold the record that is replayed"):
        start(str(record), tmp_path / "out")
    with pytest.raises(ConfigError, match="--champion: is required"):
        start(str(record), tmp_path / "other", champion=None)
    with pytest.raises(RecordError, match="has no exchange to replay"):
        start(str(record), tmp_path / "late", since=4e9)
    with pytest.raises(RecordError):
        start(str(tmp_path / "nothing"), tmp_path / "third")


def test_what_is_still_in_the_log_of_an_object_store_is_replayed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(raw: Any, views: Any, total: int, only: Any, **_: Any) -> Any:
        return raw["champion"]["model"], total, [view["exchange_id"] for view in views]

    monkeypatch.setattr(replay_run, "_run", taken)
    url, spool = f"memory://replay-{tmp_path.name}", tmp_path / "spool"
    store = RemoteStore(url).inside("replica-0")
    write(spool, Control("identity", 1.0, IDENTITY), accepted(1), ended(1), store=store)
    seal(Source(spool / "replica-0", store), "replica-0", include_newest=True)
    newer = {"champion": {"name": "champion", "model": "org/newer", "engine_args": {}}}
    write(spool, Control("identity", 2.0, newer), accepted(2), ended(2), store=store)
    assert start(url, tmp_path / "a", champion=None) == ("org/lead", 1, ["ex-1"])
    assert start(url, tmp_path / "b", champion=None, spool=spool) == ("org/newer", 2, ["ex-1", "ex-2"])


@in_loop
async def test_offline_the_champion_waits_while_a_challenger_has_enough_before_it() -> None:
    """Backpressure: what a server would shed as queue_full waits here."""
    engine, ear = FakeEngine(gate=asyncio.Event()), Ear()
    lane = Lane([engine], shadow_spec(max_concurrency=1), ear)
    lane.start()
    for number in range(3):
        lane.offer(Offer(exchange(f"x-{number}")))
    waiting = asyncio.ensure_future(lane.room(3))
    await turns(20)
    assert not waiting.done()
    assert engine.gate is not None
    engine.gate.set()
    await waiting
    assert len(ear.endings) >= 1
    await lane.idle()
    await lane.room(1)
    await lane.close()
