"""The counts add up across restarts, and nothing that was accepted is forgotten."""

from __future__ import annotations

import random
from pathlib import Path

from understudy.record import Control, Counts, Unfinished
from understudy.types import State

from .builders import accepted, ended, feedback, open_keeper


def test_an_empty_folder_has_nothing_to_recover(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path / "new")
    recovery = keeper.recovery
    assert (recovery.unfinished, recovery.counts, recovery.num_records) == ((), {}, 0)
    keeper.close()


def test_counts_and_unfinished_are_rebuilt(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    for event in (
        Control("start", 1.0, offered={"b": 0, "c": 0}),
        accepted(1, "b", "c", offered={"b": 1, "c": 1}),
        accepted(2, "b", offered={"b": 4, "c": 2}),
        accepted(3, "b", "c", offered={"b": 5, "c": 3}),
        accepted(4, "c", offered={"b": 5, "c": 4}),
        ended(1, "b"),
        ended(2, "b", State.SHED, "pressure"),
        feedback("ex-1"),
        ended(3, "b", State.FAILED, "engine_dead"),
        ended(4, "c", State.CANCELLED),
        ended(3, "c", State.SHED, "deadline"),
        Control("pause", 9.0, offered={"b": 11, "c": 4}),
    ):
        keeper.append(event)
    keeper.close()
    keeper = open_keeper(tmp_path)
    recovery = keeper.recovery
    keeper.close()
    assert recovery.counts == {
        "b": Counts(offered=11, sampled=3, compared=1, shed={"pressure": 1}, failed={"engine_dead": 1}),
        "c": Counts(offered=4, sampled=3, shed={"deadline": 1}, cancelled=1),
    }
    assert recovery.unfinished == (Unfinished("ex-1", "c"),)
    assert (recovery.counts["b"].pending, recovery.counts["c"].pending) == (0, 1)
    assert (recovery.num_records, recovery.num_orphans, recovery.num_damaged) == (12, 0, 0)


def test_what_the_caller_ends_after_a_restart_stays_ended(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    keeper.append(accepted(1, "b", "c"))
    keeper.append(accepted(2, "b"))
    keeper.close()
    keeper = open_keeper(tmp_path)
    before = keeper.recovery
    assert [(u.exchange_id, u.challenger) for u in before.unfinished] == [
        ("ex-1", "b"),
        ("ex-1", "c"),
        ("ex-2", "b"),
    ]
    for number, challenger in ((1, "b"), (1, "c"), (2, "b")):
        keeper.append(ended(number, challenger, State.EXPIRED, "restart"))
    keeper.close()
    keeper = open_keeper(tmp_path)
    after = keeper.recovery
    keeper.close()
    assert after.unfinished == ()
    assert after.counts == {name: counts.expire_pending() for name, counts in before.counts.items()}
    assert after.counts["b"] == Counts(sampled=2, expired=2)


def test_a_second_ending_and_one_without_its_exchange_are_not_counted(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    for event in (accepted(1), ended(1), ended(1, state=State.EXPIRED), ended(7), ended(1, "unasked")):
        keeper.append(event)
    keeper.close()
    keeper = open_keeper(tmp_path)
    assert keeper.recovery.counts == {"b": Counts(sampled=1, compared=1)}
    assert keeper.recovery.num_orphans == 3
    assert keeper.find("ex-1")[0]["challengers"]["b"]["state"] == "compared"
    keeper.close()


def test_random_lives_with_restarts_add_up(tmp_path: Path) -> None:
    chance = random.Random(7)
    waiting: list[tuple[int, str]] = []
    expected = {name: {"sampled": 0, **dict.fromkeys(State, 0)} for name in "bcd"}
    number = 0
    for _ in range(6):
        keeper = open_keeper(tmp_path, max_segment_bytes=4_000)
        assert sorted((int(u.exchange_id[3:]), u.challenger) for u in keeper.recovery.unfinished) == sorted(waiting)
        for _ in range(40):
            if waiting and chance.random() < 0.6:
                ending = waiting.pop(chance.randrange(len(waiting)))
                state = chance.choice([state for state in State if state is not State.PENDING])
                expected[ending[1]][state] += 1
                keeper.append(ended(*ending, state, chance.choice(["x", "y"])))
            else:
                number += 1
                names = chance.sample("bcd", chance.randint(1, 3))
                for name in names:
                    expected[name]["sampled"] += 1
                    waiting.append((number, name))
                keeper.append(accepted(number, *names))
        keeper.close()
    keeper = open_keeper(tmp_path)
    for name, counts in keeper.recovery.counts.items():
        assert counts.sampled == expected[name]["sampled"]
        assert counts.compared == expected[name][State.COMPARED]
        assert sum(counts.shed.values()) == expected[name][State.SHED]
        assert sum(counts.failed.values()) == expected[name][State.FAILED]
        assert (counts.expired, counts.cancelled) == (
            expected[name][State.EXPIRED],
            expected[name][State.CANCELLED],
        )
        assert counts.pending == sum(challenger == name for _, challenger in waiting)
    keeper.close()
