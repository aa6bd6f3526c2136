"""A challenger that hangs or takes the engine process with it: the champion comes back without it, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving import faults
from tests.serving.models import make
from tests.serving.process import Running, running, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]

SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quarantine")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    models = make(folder / "models")
    config = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challengers": [{"model": models["qwen2"], "name": name, "engine_args": SMALL} for name in ("a", "b", "c")],
        "shadow": {"limits": {"hang_s": 3}},
        "record": {"url": str(folder / "record")},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in faults.prepare(folder).items():
            patch.setenv(name, value)
        faults.inject(folder, "c", "kill")
        with running(config, folder) as server:
            yield server


def ask(server: Running, number: int = 0) -> dict[str, Any] | None:
    """The champion's answer with its logprobs; None where there is none just now."""
    body = {
        "model": "champ", "prompt": f"the lazy dog number {number}", "max_tokens": 12, "temperature": 0, "logprobs": 1,
    }  # fmt: skip
    try:
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    except httpx.HTTPError:
        return None
    if answer.status_code != 200:
        return None
    found: dict[str, Any] = answer.json()["choices"][0]
    return found


def challenger(server: Running, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in server.status()["challengers"] if each["name"] == name)
    return found


def comes_back_without(server: Running, name: str) -> dict[str, Any]:
    """The status of the challenger once the server answers again."""

    def quarantined() -> dict[str, Any] | None:
        try:
            seen = challenger(server, name)
        except httpx.HTTPError:
            return None
        return seen if seen["quarantine"] and not seen["ready"] and ask(server) is not None else None

    found: dict[str, Any] = wait_for(quarantined, 240)
    return found


def resume(server: Running, *more: str) -> str:
    command = [str(Path(sys.executable).parent / "understudy"), "shadow", "resume", server.url, *more]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {}).stdout


def test_a_challenger_that_never_loads_is_quarantined_and_the_champion_starts_without_it(tmp_path: Path) -> None:
    models = make(tmp_path / "models")
    config = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challenger": {"model": models["qwen2"], "name": "a", "engine_args": SMALL},
        "shadow": {"limits": {"start_timeout_s": 5}},
        "record": {"url": str(tmp_path / "record")},
    }
    environment = faults.prepare(tmp_path)
    faults.inject(tmp_path, "a", "never_loads")
    with running(config, tmp_path, environment=environment) as server:
        assert ask(server) is not None
        seen = challenger(server, "a")
        assert seen["quarantine"]["why"] == "it was not up within 5 s"
        assert "in quarantine since" in seen["detail"]
        status = server.settled()
        assert (status["phase"], status["counts"]["shed"]) == ("off", {"quarantined": 1})
        assert (tmp_path / "record" / "quarantine.json").exists()


def test_a_challenger_that_takes_the_process_during_the_start_does_not_stop_it(server: Running) -> None:
    seen = challenger(server, "c")
    assert seen["quarantine"]["why"] == "the engine process ended with signal SIGKILL while c was stepping"
    assert [challenger(server, name)["ready"] for name in "abc"] == [True, True, False]


def test_out_of_memory_ends_the_requests_and_not_the_challenger(server: Running, folder: Path) -> None:
    expected = ask(server)
    assert expected is not None
    server.settled()
    faults.inject(folder, "a", "out_of_memory")
    assert ask(server) == expected
    counts = {name: challenger(server, name)["counts"] for name in "ab" if server.settled()}
    assert counts["a"]["failed"] == {"out_of_memory": 1}
    assert counts["b"]["failed"] == {}
    assert ask(server) == expected
    server.settled()
    after = challenger(server, "a")
    assert (after["ready"], after["counts"]["compared"]) == (True, counts["a"]["compared"] + 1)


def test_a_challenger_that_hangs_is_quarantined_and_the_champion_serves_as_before(
    server: Running, folder: Path
) -> None:
    expected = [ask(server, number) for number in range(4)]
    server.settled()
    faults.inject(folder, "a", "hang")
    ask(server, 5)  # its shadow work hangs
    seen = comes_back_without(server, "a")
    assert seen["quarantine"]["why"].startswith("it hung: it was in one step for 3 s")
    assert "in quarantine since" in seen["detail"]
    assert challenger(server, "b")["ready"]
    assert [ask(server, number) for number in range(4)] == expected
    counts = server.settled()["counts"]
    assert counts["shed"]["quarantined"] >= 4
    assert (folder / "record" / "quarantine.json").exists()


def test_resume_lifts_it_and_says_when_it_comes_back(server: Running) -> None:
    assert "lifted" in resume(server, "--challenger", "a")
    assert challenger(server, "a")["quarantine"] is None
    assert not challenger(server, "a")["ready"]


def test_a_challenger_that_takes_the_process_is_quarantined_and_the_lifted_one_is_back(
    server: Running, folder: Path
) -> None:
    expected = ask(server)
    server.settled()
    faults.inject(folder, "b", "kill")
    ask(server, 6)
    seen = comes_back_without(server, "b")
    assert seen["quarantine"]["why"] == "the engine process ended with signal SIGKILL while b was stepping"
    assert challenger(server, "a")["ready"]
    assert ask(server) == expected


def test_a_crash_in_the_champions_own_step_quarantines_nobody(server: Running, folder: Path) -> None:
    before = challenger(server, "a")
    assert before["ready"]
    expected = ask(server)
    server.settled()
    faults.inject(folder, "champ", "crash")
    assert ask(server, 7) is None
    wait_for(lambda: ask(server), 240)
    assert challenger(server, "a")["ready"]
    assert ask(server) == expected
