"""The report of a record, without a server: replicas together, by the gates that stand in it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from click.testing import CliRunner
from tests.record.builders import accepted, ended, feedback, open_keeper

from understudy.browse.champion import champion_in
from understudy.cli import cli
from understudy.config import RecordSpec
from understudy.errors import RecordError
from understudy.judge.gates import Gate
from understudy.judge.verdict import Judge
from understudy.record import Accepted, Control, Ended, Event, scan
from understudy.record.recording import Recording
from understudy.recorded import judged, said_of
from understudy.types import Answer, Comparison, Ending, State

GATES = [
    {"metric": "accuracy", "margin": 0.1, "alpha": 0.05, "min_units": 20, "pattern": r"(\w+)", "advisory": False},
    {"metric": "missing", "margin": 0.2, "alpha": 0.05, "min_units": 20, "pattern": None, "advisory": False},
]
IDENTITY = {
    "champion": {"name": "champion", "model": "org/lead"},
    "challengers": [{"name": "b", "model": "org/other"}],
    "gates": GATES,
}
NUM = 400


def write(folder: Path, *events: Event, rollout: str = "one") -> None:
    keeper = open_keeper(folder, rollout=rollout)
    for event in events:
        keeper.append(event)
    asyncio.run(keeper.flush())
    keeper.close()


def said(word: str, number: int, model: str) -> Any:
    whole = accepted(number).exchange.champion
    return replace(whole, model=model, answers=(Answer((1, 2), word, "stop"),))


def pair(number: int, champion: str, challenger: str, session: str | None = None) -> list[Event]:
    """What both said, in a session of its own."""
    one = accepted(number)
    facts = replace(one.exchange.facts, tags=MappingProxyType({"session": session or f"s{number}"}))
    asked = replace(one.exchange, facts=facts, champion=said(champion, number, "champion"))
    ending = Ending(State.COMPARED, challenger=said(challenger, number, "b"), comparison=Comparison({"exact_match": 1}))
    return [Accepted(asked, ("b",), {}), Ended(f"ex-{number}", "b", ending, 1_700_000_100.0 + number)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Every label reached the replica that does not have the exchange."""
    for replica in (0, 1):
        mine = [event for number in range(replica, NUM, 2) for event in pair(number, "yes", "yes")]
        theirs = [feedback(f"client-{number}", "yes") for number in range(1 - replica, NUM, 2)]
        write(tmp_path / f"replica-{replica}", Control("identity", 1.0 + replica, IDENTITY), *mine, *theirs)
    return str(tmp_path)


def test_labels_given_to_another_replica_count_and_one_replica_alone_has_none(url: str) -> None:
    status, (summary,) = judged(url)
    verdict = status["verdict"]
    assert verdict["verdict"] == "GO"
    assert [(gate["metric"], gate["units"]) for gate in verdict["gates"]] == [("accuracy", NUM), ("missing", NUM)]
    (challenger,) = status["challengers"]
    assert challenger["counts"]["sampled"] == challenger["counts"]["compared"] == summary.compared == NUM
    assert (status["champion"]["model"], challenger["model"]) == ("org/lead", "org/other")
    assert said_of(status) == []
    alone, _ = judged(f"{url}/replica-0")
    assert [gate["units"] for gate in alone["verdict"]["gates"]] == [0, NUM // 2]


def test_it_is_what_one_judge_says_who_heard_all_of_it_live(url: str) -> None:
    judge = Judge([Gate(**gate) for gate in GATES])
    for number in range(NUM):
        asked, end = pair(number, "yes", "yes")
        assert isinstance(asked, Accepted)
        assert isinstance(end, Ended)
        judge.ended(asked.exchange, "b", end.ending)
        judge.feedback(f"ex-{number}", "yes", 1.0)
    status, _ = judged(url)
    live = judge.verdict("b").as_dict()
    for verdict in (live, status["verdict"]):
        for gate in verdict["gates"]:
            del gate["more_hours"]  # from now on
    assert status["verdict"] == live


def test_a_session_that_was_spread_over_replicas_is_one_unit(tmp_path: Path) -> None:
    for replica in (0, 1):
        events = pair(replica, "yes", "yes", session="of both")
        write(
            tmp_path / f"replica-{replica}",
            Control("identity", 1.0, IDENTITY),
            *events,
            feedback(f"ex-{replica}", "yes"),
        )
    status, _ = judged(str(tmp_path))
    assert [gate["units"] for gate in status["verdict"]["gates"]] == [1, 1]


def test_a_session_that_one_replica_has_under_its_pseudonym_is_one_unit_too(tmp_path: Path) -> None:
    for replica, text in enumerate(("full", "none")):
        recording = Recording.of(RecordSpec(url=str(tmp_path), text=text), f"replica-{replica}")
        keeper = open_keeper(recording.log, rollout="one", privacy=recording.privacy)
        for event in (Control("identity", 1.0, IDENTITY), *pair(replica, "yes", "yes", session="of both")):
            keeper.append(event)
        keeper.close()
    status, _ = judged(str(tmp_path))
    assert status["verdict"]["gates"][1]["units"] == 1


def test_the_last_rollout_is_judged_and_another_one_when_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "replica-0"
    older = IDENTITY | {"champion": {"name": "champion", "model": "org/older"}}
    write(folder, Control("identity", 1.0, older), accepted(1), ended(1), rollout="first")
    write(folder, Control("identity", 2.0, IDENTITY), accepted(2), accepted(3), ended(3), rollout="second")
    status, _ = judged(str(tmp_path))
    assert status["champion"]["model"] == "org/lead"
    assert said_of(status) == [
        "1 exchanges of other rollouts are in the record and not in this verdict",
        "1 have not ended yet, or their replica has not come back since",
    ]
    before, _ = judged(str(tmp_path), rollout="first")
    assert (before["champion"]["model"], before["challengers"][0]["counts"]["compared"]) == ("org/older", 1)
    with pytest.raises(RecordError, match=r"--rollout: 'third' is not in .*; there are first, second"):
        judged(str(tmp_path), rollout="third")


def test_a_record_that_does_not_say_what_was_compared_has_no_verdict(tmp_path: Path) -> None:
    write(tmp_path / "replica-0", accepted(1), ended(1))
    with pytest.raises(RecordError, match="does not say what was compared"):
        judged(str(tmp_path))


def test_report_and_exchanges_find_the_same_newest_champion_over_all_writers(tmp_path: Path) -> None:
    older = IDENTITY | {"champion": {"name": "champion", "model": "org/older"}}
    unknown = IDENTITY | {"champion": None}
    write(tmp_path / "replica-0", Control("identity", 2.0, IDENTITY), Control("identity", 3.0, unknown))
    write(tmp_path / "replica-1", Control("identity", 1.0, older), rollout="older")
    status, _ = judged(str(tmp_path))
    found = champion_in(str(tmp_path))
    assert found is not None
    assert status["champion"]["model"] == found["model"] == "org/lead"


def test_a_gate_that_this_version_does_not_know_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    write(tmp_path / "replica-0", Control("identity", 1.0, IDENTITY | {"gates": [{"metric": "vibes", "margin": 0.1}]}))
    with pytest.raises(RecordError, match="vibes"):
        judged(str(tmp_path))


def prompts_of(number: int, client_request_id: str, state: State) -> list[Event]:
    asked, end = pair(number, "yes", "yes")
    assert isinstance(asked, Accepted)
    facts = replace(asked.exchange.facts, client_request_id=client_request_id)
    asked = replace(asked, exchange=replace(asked.exchange, facts=facts))
    return [asked, end if state is State.COMPARED else ended(number, state=state, reason="restart")]


def test_of_a_compare_that_was_interrupted_the_last_endings_stand_and_its_sessions_are_over(tmp_path: Path) -> None:
    started = Control("identity", 1.0, IDENTITY | {"offline": "compare"})
    expired = [event for number in range(3) for event in prompts_of(number, f"p{number}", State.EXPIRED)]
    again = [event for number in range(2) for event in prompts_of(10 + number, f"p{number}", State.COMPARED)]
    write(tmp_path / "replica-0", started, *expired, *again)
    status, (summary,) = judged(str(tmp_path))
    counts = status["challengers"][0]["counts"]
    assert (counts["sampled"], counts["compared"], counts["expired"]) == (3, 2, 1)
    assert (summary.compared, summary.missing) == (2, 1)
    assert status["verdict"]["open_sessions"] == 0


def test_of_a_replay_that_was_interrupted_too(tmp_path: Path) -> None:
    """Its exchanges keep their ids, and clients may have used one of theirs twice."""
    started = Control("identity", 1.0, IDENTITY | {"offline": "replay"})
    first = [event for number in range(2) for event in prompts_of(number, "the client's", State.EXPIRED)]
    write(tmp_path / "replica-0", started, *first)
    write(tmp_path / "replica-0", *prompts_of(0, "the client's", State.COMPARED))
    counts = judged(str(tmp_path))[0]["challengers"][0]["counts"]
    assert (counts["sampled"], counts["compared"], counts["expired"]) == (2, 1, 1)


def test_a_go_over_a_damaged_record_is_none_for_a_gate(url: str) -> None:
    log = next((Path(url) / "replica-1").glob("segment-*.jsonl"))
    log.write_bytes(log.read_bytes().replace(b'"state":"compared"', b'"state":"compered"', 1))
    done = CliRunner().invoke(cli, ["report", url, "--gate"])
    assert (done.exit_code, " GO " in done.output) == (3, True), done.output
    assert "the verdict is with less" in done.output


def test_one_exchange_that_cannot_be_judged_does_not_end_the_report(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Judge.ended

    def ended_but_one(self: Judge, exchange: Any, challenger: str, ending: Ending) -> None:
        if exchange.exchange_id == "ex-7":
            raise ValueError("absurd")
        whole(self, exchange, challenger, ending)

    monkeypatch.setattr(Judge, "ended", ended_but_one)
    status, (summary,) = judged(url)
    assert (summary.compared, status["record"]["unreadable"]) == (NUM - 1, 1)
    assert said_of(status) == ["1 exchanges could not be read: the verdict is with less"]


def test_the_command_prints_it_and_ends_in_its_exit_code(url: str, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(cli, ["report", url, "--gate", "--out", str(tmp_path / "page.html")])
    assert (done.exit_code, " GO " in done.output, "accuracy" in done.output) == (0, True, True), done.output
    assert "GO" in (tmp_path / "page.html").read_text()
    done = run(cli, ["report", f"{url}/replica-0", "--gate"])
    assert (done.exit_code, "NOT ENOUGH DATA" in done.output) == (3, True), done.output
    done = run(cli, ["report", "http://127.0.0.1:1", "--rollout", "x"])
    assert (done.exit_code, "must be a record" in done.output) == (2, True), done.output
    done = run(cli, ["report", str(tmp_path / "nowhere")])
    assert (done.exit_code, "cannot be read" in str(done.exception)) == (1, True), done.output
    assert len(list(scan(url))) == NUM  # nothing was written
