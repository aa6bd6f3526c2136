"""scan() merges the replicas under one URL, joins feedback across them, and needs no lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.errors import RecordError
from understudy.record import scan
from understudy.types import State

from .builders import accepted, ended, feedback, flush, open_keeper


@pytest.fixture
def url(tmp_path: Path) -> Path:
    """Two replicas; a label that reached the one where the exchange is not."""
    for replica, number in (("replica-0", 1), ("replica-1", 2)):
        keeper = open_keeper(tmp_path / replica)
        keeper.append(accepted(number))
        keeper.append(ended(number, state=State.SHED, reason="pressure"))
        keeper.append(feedback(f"client-{3 - number}", f"from {replica}"))
        keeper.close()
    return tmp_path


def test_replicas_are_merged_and_feedback_is_joined_across_them(url: Path) -> None:
    views = list(scan(url))
    assert [view["exchange_id"] for view in views] == ["ex-1", "ex-2"]
    assert [view["feedback"][0]["label"] for view in views] == ["from replica-1", "from replica-0"]
    assert views[0]["challengers"]["b"]["reason"] == "pressure"
    assert list(scan(f"file://{url}")) == views
    assert [view["exchange_id"] for view in scan(url / "replica-1")] == ["ex-2"]


def test_by_time_of_arrival(url: Path) -> None:
    first, second = (view["arrived_unix_s"] for view in scan(url))
    assert [view["exchange_id"] for view in scan(url, since=second)] == ["ex-2"]
    assert [view["exchange_id"] for view in scan(url, since=first, until=second)] == ["ex-1"]


def test_while_a_server_writes(url: Path) -> None:
    keeper = open_keeper(url / "replica-0")
    keeper.append(accepted(7))
    flush(keeper)
    assert [view["exchange_id"] for view in scan(url)] == ["ex-1", "ex-7", "ex-2"]
    keeper.close()


def test_no_record_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no record"):
        list(scan(tmp_path))
    with pytest.raises(RecordError, match="cannot be read"):
        list(scan(tmp_path / "nowhere"))
