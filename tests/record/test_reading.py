"""An exchange is found by each of its ids and shown whole; all of them are read without holding them all."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import RecordError
from understudy.record import Control, Event, RecordKeeper, RecordReader
from understudy.record.index import Index, Places
from understudy.record.lines import Place, frame, segment_path
from understudy.record.schema import Head
from understudy.record.sources import Source
from understudy.types import State

from .builders import accepted, ended, feedback, flush, open_keeper

EVENTS: list[Event] = [
    accepted(1, "b", "c"),
    feedback("chatcmpl-1", "early"),
    accepted(2, "b"),
    ended(2, "b", State.SHED, "pressure"),
    Control("pause", 1.0),
    ended(1, "b"),
    accepted(3, "b", client_request_id="client-1"),
    feedback("client-1", "late"),
    ended(3, "b", State.EXPIRED, "restart"),
    feedback("ex-3", "bad"),
    feedback("nobody", "lost"),
]


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    keeper = open_keeper(tmp_path / "r", max_segment_bytes=2_000)
    for event in EVENTS:
        keeper.append(event)
        flush(keeper)
    keeper.close()
    return tmp_path / "r"


def open_index(folder: Path, max_indexed: int) -> RecordKeeper:
    keeper = open_keeper(folder, max_indexed=max_indexed)
    keeper.close()
    return keeper


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [exchange["exchange_id"] for exchange in found]


@pytest.mark.parametrize("max_indexed", [100, 1, None])  # all in the index; found by a scan; no index at all
def test_found_by_each_id(filled: Path, max_indexed: int | None) -> None:
    reader = RecordReader(filled) if max_indexed is None else open_index(filled, max_indexed).reader
    assert ids(reader.find("ex-1")) == ["ex-1"]
    assert ids(reader.find("chatcmpl-2")) == ["ex-2"]
    assert ids(reader.find("client-2")) == ["ex-2"]
    expected = ["ex-3"] if max_indexed == 1 else ["ex-3", "ex-1"]  # newest first; see find()'s docstring
    assert ids(reader.find("client-1")) == expected
    assert reader.find("nobody") == []
    assert reader.find("") == []


@pytest.mark.parametrize("max_indexed", [100, 1])
def test_the_merged_view(filled: Path, max_indexed: int) -> None:
    reader = open_index(filled, max_indexed).reader
    first = reader.find("ex-1")[0]
    assert first["request_id"] == "chatcmpl-1"
    assert first["tags"] == {"session": "s1"}
    assert first["parameters"] == {"temperature": 0.0}
    assert first["champion"]["answers"][0]["token_ids"] == [1000, 1001, 1002]
    compared = first["challengers"]["b"]
    assert (compared["state"], compared["comparison"]) == ("compared", {"top1": 0.5})
    score = {"logprobs": [-0.25, "-inf"], "ranks": [1, 7], "entropies": [0.5, 2.0], "top1": [4, 9], "busy_s": 0.0625}
    apart = {"kl_forward": [0.5, "inf"], "kl_backward": [0.25, 1.0], "hellinger": [0.5, 1.0]}
    score |= {"divergence": apart | {"champion_entropies": [2.0, 3.0]}}
    assert compared["observation"]["scores"] == [score]
    assert first["challengers"]["c"] == {
        "state": "pending",
        "reason": None,
        "detail": None,
        "observation": None,
        "comparison": None,
        "floor": None,
        "ended_unix_s": None,
    }
    assert [one["label"] for one in first["feedback"]] == ["early", "late"]
    assert not {"crc", "v", "kind", "offered"} & first.keys()
    second = reader.find("ex-2")[0]
    assert (second["challengers"]["b"]["state"], second["challengers"]["b"]["reason"]) == ("shed", "pressure")
    assert second["feedback"] == []


def test_an_exchange_is_found_as_soon_as_it_is_on_disk(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    keeper.append(accepted(1))
    flush(keeper)
    assert keeper.find("client-1")[0]["challengers"]["b"]["state"] == "pending"
    keeper.append(ended(1))
    keeper.append(feedback("ex-1"))
    flush(keeper)
    found = keeper.find("chatcmpl-1")[0]
    assert (found["challengers"]["b"]["state"], len(found["feedback"])) == ("compared", 1)
    keeper.close()


def test_the_index_is_bounded_and_what_it_forgot_is_still_found(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path, max_indexed=10)
    for number in range(50):
        keeper.append(accepted(number))
        keeper.append(ended(number))
        keeper.append(feedback(f"client-{number}"))
    flush(keeper)
    index = keeper.reader._index
    assert index is not None
    assert (len(index), len(index._by_other_id), len(index._feedback)) == (10, 20, 10)
    for number in (0, 39, 40, 49):
        found = keeper.find(f"client-{number}")
        assert ids(found) == [f"ex-{number}"]
        assert (found[0]["challengers"]["b"]["state"], len(found[0]["feedback"])) == ("compared", 1)
    keeper.close()


def test_the_garbage_collector_has_nothing_to_walk_in_an_index() -> None:
    index = Index()

    def tell(numbers: range) -> None:
        for number in numbers:
            index.add(
                Head("accepted", exchange_id=f"ex-{number}", request_id=f"chat-{number}"), Place(1, 2**40 + number)
            )
            index.add(Head("ended", exchange_id=f"ex-{number}"), Place(1, 2**41 + number))
            index.add(Head("feedback", id=f"chat-{number}"), Place(2, 2**42 + number))

    tell(range(10))
    before = num_tracked()
    tell(range(10, 3010))
    assert num_tracked() - before < 30  # five an exchange are 15,000, and a pause of ms
    assert index.find("chat-2000", 1)[0] == Places(
        Place(1, 2**40 + 2000), (Place(1, 2**41 + 2000),), (Place(2, 2**42 + 2000),)
    )


def num_tracked() -> int:
    for _ in range(3):
        gc.collect()
    return len(gc.get_objects())


def test_an_index_that_forgot_only_exchanges_knows_that_it_did(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path, max_indexed=1)
    for number in range(2):
        keeper.append(accepted(number))
    flush(keeper)
    assert ids(keeper.find("ex-0")) == ["ex-0"]
    keeper.close()


def test_one_client_id_on_everything_is_cut_at_a_hundred(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    for number in range(120):
        keeper.append(accepted(number, client_request_id="same"))
    flush(keeper)
    newest = [f"ex-{number}" for number in range(119, 19, -1)]
    assert ids(keeper.find("same")) == newest
    assert ids(RecordReader(tmp_path).find("same")) == newest
    keeper.close()


def test_an_unknown_id_is_not_searched_in_the_log_when_the_index_knows_all(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_index(filled, 100).reader
    monkeypatch.setattr(Source, "heads_where", None)
    assert reader.find("unknown") == []


def test_iterate_gives_every_exchange_once_with_all_that_came_later(filled: Path) -> None:
    views = list(RecordReader(filled).iterate())
    assert ids(views) == ["ex-2", "ex-3", "ex-1"]  # as they ended; ex-1 is pending for c
    reader = RecordReader(filled)
    assert views == [reader.find(view["exchange_id"])[0] for view in views]


def test_iterate_holds_open_only_what_has_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = open_keeper(tmp_path)
    for number in range(100):
        keeper.append(accepted(number, "b", "c"))
        keeper.append(ended(number, "b"))
        if number >= 5:
            keeper.append(ended(number - 5, "c"))
    keeper.close()
    most = 0
    original = Index.pop

    def pop(self: Any, exchange_id: str) -> Any:
        nonlocal most
        most = max(most, len(self))
        return original(self, exchange_id)

    monkeypatch.setattr(Index, "pop", pop)
    assert len(list(keeper.iterate())) == 100
    assert most == 6


def damage_line(folder: Path, text: bytes) -> None:
    for path in sorted(folder.glob("segment-*")):
        whole = path.read_bytes()
        if text in whole:
            path.write_bytes(whole.replace(text, text[:-1] + b"#", 1))
            return
    raise AssertionError(text)


def test_damage_is_counted_named_and_never_hidden(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = open_index(filled, 100)
    damage_line(filled, b'"accepted","exchange_id":"ex-2"')
    with pytest.raises(RecordError, match=r"segment-0000000\d.jsonl at byte \d+"):
        whole.find("ex-2")
    reader = RecordReader(filled)
    assert ids(list(reader.iterate())) == ["ex-3", "ex-1"]
    assert reader.find("ex-2") == []
    assert reader.damage.num_damaged == 1  # both passes and the scan met it: it is one place
    assert "the record is damaged" in caplog.text
    keeper = open_index(filled, 100)
    assert keeper.recovery.num_damaged == 1
    assert keeper.recovery.num_orphans == 1
    assert "at byte" in keeper.recovery.damage[0]


def test_a_damaged_ending_leaves_the_exchange_unfinished(filled: Path) -> None:
    damage_line(filled, b'"ended","exchange_id":"ex-1"')
    keeper = open_index(filled, 100)
    assert [(u.exchange_id, u.challenger) for u in keeper.recovery.unfinished] == [
        ("ex-1", "b"),
        ("ex-1", "c"),
    ]
    assert keeper.find("ex-1")[0]["challengers"]["b"]["state"] == "pending"


def test_damage_that_only_the_whole_record_shows(filled: Path) -> None:
    line = b'{"v":1,"kind":"accepted","exchange_id":"ex-9","challengers":[],"prompt_text":"\xff"}'
    with segment_path(filled, 1).open("ab") as file:
        file.write(frame(line))
    reader = RecordReader(filled)
    assert ids(list(reader.iterate())) == ["ex-2", "ex-3", "ex-1"]
    assert reader.damage.num_damaged == 1
    with pytest.raises(RecordError, match="not JSON"):
        reader.find("ex-9")


def test_a_folder_that_cannot_be_read_is_refused_and_free_again(filled: Path) -> None:
    last = segment_path(filled, 99)
    last.write_bytes(b"")
    hidden = segment_path(filled, 98)
    hidden.mkdir()
    with pytest.raises(RecordError, match="cannot be"):
        open_keeper(filled)
    hidden.rmdir()
    open_keeper(filled).close()


def test_a_line_of_another_version_is_damage_with_a_place(filled: Path) -> None:
    with segment_path(filled, 1).open("ab") as file:
        file.write(frame(b'{"v":9,"kind":"accepted"}'))
    keeper = open_index(filled, 100)
    assert keeper.recovery.num_damaged == 1
    assert "a record of version 9" in keeper.recovery.damage[0]
