"""A challenger that hangs or takes the shared engine process with it: the champion comes back without it, and says why.

Users ask all the time. While the replica is replaced some of their requests fail, and it is said here how; none gets
another answer than the champion's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving.chaos.drill import Drill, drill
from tests.serving.process import wait_for

HANG_S = 3

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    challengers = [(name, "qwen2") for name in "abc"]
    with drill(tmp_path_factory.mktemp("quarantine"), challengers, {"hang_s": HANG_S}, first="kill c") as here:
        yield here


def quarantined(here: Drill, name: str) -> dict[str, Any]:
    """The challenger's status once the new replica has it in quarantine; the old one still answers for a moment."""

    def seen() -> dict[str, Any] | None:
        try:
            status = here.challenger(name)
        except httpx.HTTPError:
            return None
        return status if status["quarantine"] and "in quarantine since" in status["detail"] else None

    found: dict[str, Any] = wait_for(seen, 240)
    return found


def marked(here: Drill) -> set[str]:
    """Whom the marker file names."""
    return set(json.loads((here.record / "quarantine.json").read_text())["quarantined"])


def resume(here: Drill, *more: str) -> str:
    command = [str(Path(sys.executable).parent / "understudy"), "shadow", "resume", here.server.url, *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_challenger_that_never_loads_is_quarantined_and_the_champion_starts_without_it(tmp_path: Path) -> None:
    with drill(tmp_path, [("a", "qwen2")], {"start_timeout_s": 5}, first="never_loads a") as here:
        seen = here.challenger("a")
        assert seen["quarantine"]["why"] == "it was not up within 5 s"
        assert "in quarantine since" in seen["detail"]
        with here.watched():
            here.until_more("a", "shed", "quarantined")
        assert here.server.status()["phase"] == "off"
        assert marked(here) == {"a"}


def test_a_challenger_that_takes_the_process_during_the_start_does_not_stop_it(here: Drill) -> None:
    seen = here.challenger("c")
    assert seen["quarantine"]["why"] == "the engine process ended with signal SIGKILL while c was stepping"
    assert here.ready() == ["a", "b"]
    assert marked(here) == {"c"}


def test_out_of_memory_ends_the_requests_and_not_the_challenger(here: Drill) -> None:
    with here.watched():
        here.turn("memory_error a")
        here.until_more("a", "failed", "out_of_memory")
        here.look()
        here.until_more("a", "compared")
        here.until_more("b", "compared")
    assert here.challenger("b")["counts"]["failed"] == {}


def test_a_challenger_that_hangs_is_quarantined_and_the_champion_serves_as_before(here: Drill) -> None:
    with here.audience.may_fail() as failed:
        here.turn("native_hang a")
        seen = quarantined(here, "a")
        here.audience.go_on(here.audience.mark())
    say("hang", failed)
    assert seen["quarantine"]["why"].startswith(f"it hung: it was in one step for {HANG_S} s")
    with here.watched():
        here.until_more("a", "shed", "quarantined")
        here.until_more("b", "compared")
    assert marked(here) == {"a", "c"}


def test_resume_lifts_it_and_says_when_it_comes_back(here: Drill) -> None:
    with here.watched():
        assert "lifted" in resume(here, "--challenger", "a")
        assert here.challenger("a")["quarantine"] is None
        assert not here.challenger("a")["ready"]
    assert marked(here) == {"c"}


def test_a_challenger_that_takes_the_process_is_quarantined_and_the_lifted_one_is_back(here: Drill) -> None:
    with here.audience.may_fail() as failed:
        here.turn("abort b")
        seen = quarantined(here, "b")
        here.audience.go_on(here.audience.mark())
    say("abort", failed)
    assert seen["quarantine"]["why"] == "the engine process ended with signal SIGABRT while b was stepping"
    with here.watched():
        here.until_more("a", "compared")
        here.until_more("b", "shed", "quarantined")
    assert marked(here) == {"b", "c"}
    assert "lifted" in resume(here)
    assert marked(here) == set()


def test_a_crash_in_the_champions_own_step_quarantines_nobody_and_all_are_back(here: Drill) -> None:
    with here.audience.may_fail() as failed:
        here.turn("segfault champ")
        wait_for(lambda: failed, 60)
        wait_for(lambda: is_whole(here), 240)
        here.audience.go_on(here.audience.mark())
    say("champion", failed)
    with here.watched():
        for name in "abc":
            here.until_more(name, "compared")
    assert marked(here) == set()


def say(what: str, failed: list[str]) -> None:
    """Who runs this with -s sees how requests failed; some did, and few: the next ones waited for the new replica."""
    print(what, failed)
    assert 1 <= len(failed) <= 40


def is_whole(here: Drill) -> bool:
    """Whether the replica answers with all of its challengers."""
    try:
        return here.ready() == ["a", "b", "c"]
    except httpx.HTTPError:
        return False
