"""The dedicated placement: an engine process each, one of them killed; and the record across a restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.serving.chaos.drill import injected
from tests.serving.models import make
from tests.serving.process import Running, is_free, marked_processes, running, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(900)]

SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("dedicated")
    models = make(folder / "models")
    return {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challenger": {"model": models["qwen2"], "name": "rival", "engine_args": SMALL},
        "placement": "dedicated",
        "shadow": {"noise_floor": 1.0},
        "auth": {"shadow_key": "secret"},
        "record": {"url": str(folder / "record")},
    }


@pytest.fixture(scope="module")
def server(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(config, tmp_path_factory.mktemp("server")) as server:
        yield server


KEY = {"authorization": "Bearer secret"}


def status_of(server: Running) -> dict[str, Any]:
    return httpx.get(f"{server.url}/shadow/status", timeout=60, headers=KEY).raise_for_status().json()


def settled(server: Running) -> dict[str, Any]:
    return wait_for(lambda: (s := status_of(server))["counts"]["pending"] == 0 and s)


def ask(server: Running) -> Any:
    messages: list[Any] = [{"role": "user", "content": "the lazy dog"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        return client.chat.completions.create(model="champ", messages=messages, max_tokens=12, temperature=0)


def fails_or(call: Any) -> Any:
    """What the call gives; None where it fails."""
    try:
        return call()
    except (openai.OpenAIError, httpx.HTTPError):
        return None


def sum_of_endings(counts: dict[str, Any]) -> int:
    plain = counts["compared"] + counts["expired"] + counts["cancelled"]
    return int(plain + sum(counts["shed"].values()) + sum(counts["failed"].values()))


def engine_pids(server: Running) -> list[int]:
    """Champion first: it was started first."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if server.mark.encode() in environ.read_bytes():
                line = (environ.parent / "cmdline").read_bytes()
                if b"understudy.engines.host" in line:
                    found.append(int(environ.parent.name))
        except OSError:
            continue
    return sorted(found)


def test_it_compares_and_needs_its_key(server: Running) -> None:
    assert httpx.get(f"{server.url}/shadow/status", timeout=60).status_code == 401
    answer = ask(server)
    status = settled(server)
    assert status["placement"] == "dedicated"
    assert status["counts"]["compared"] == 1
    found = httpx.get(f"{server.url}/shadow/exchanges/{answer.id}", timeout=60, headers=KEY).json()["exchanges"]
    seen = found[0]["challengers"]["rival"]
    assert len(seen["observation"]["scores"][0]["logprobs"]) == 12
    assert seen["floor"]["comparison"]["exact_match"] == 1.0  # the champion's process holds a core for it


def test_each_model_has_an_engine_process(server: Running) -> None:
    assert len(engine_pids(server)) == 2


def test_a_killed_challenger_never_reaches_the_champion(server: Running) -> None:
    before = ask(server).choices[0].message.content
    settled(server)
    os.kill(engine_pids(server)[1], signal.SIGKILL)
    wait_for(lambda: not status_of(server)["challengers"][0]["ready"], 30)
    assert ask(server).choices[0].message.content == before
    status = settled(server)
    assert "SIGKILL" in status["challengers"][0]["detail"]
    assert status["phase"] == "off"
    assert "rival" in status["reason"]
    assert status["counts"]["shed"]["challenger_not_ready"] == 1


def test_sigterm_ends_everything_and_the_next_start_goes_on_counting(
    server: Running, config: dict[str, Any], tmp_path: Path
) -> None:
    before = settled(server)["counts"]
    assert server.stop(signal.SIGTERM) == 0
    assert is_free(server.port)
    wait_for(lambda: not marked_processes(server.mark), 20)
    with running(config | {"placement": "shared"}, tmp_path) as again:
        assert status_of(again)["counts"] == before
        ask(again)
        assert settled(again)["counts"]["compared"] == before["compared"] + 1
        # The engine process of the shared placement takes the champion with it; Ray Serve replaces the replica, and
        # nothing that was sampled is lost.
        os.kill(engine_pids(again)[0], signal.SIGKILL)
        wait_for(lambda: fails_or(lambda: ask(again)) is None, 30)
        wait_for(lambda: fails_or(lambda: ask(again)), 120)
        replaced = settled(again)["counts"]
        assert replaced["compared"] >= before["compared"] + 2
        assert replaced["sampled"] == sum_of_endings(replaced)
        # A server that is killed outright leaves nothing behind either.
        again.process.kill()
        wait_for(lambda: not [p for p in marked_processes(again.mark) if "engines.host" in p], 60)


def test_a_model_on_two_devices_answers_and_is_compared(
    config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Tensor parallelism: the model runners are in processes of their own, which only vLLM's executor reaches."""
    folder = tmp_path_factory.mktemp("parallel")
    model = config["champion"]["model"]
    parallel = SMALL | {"tensor_parallel_size": 2}
    raw = config | {
        "champion": {"model": model, "name": "champ", "engine_args": parallel},
        "challenger": {"model": model, "name": "rival", "engine_args": parallel},
        "shadow": {},
        "record": {"url": str(folder / "record")},
    }
    with running(raw, folder) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            prompt = " ".join(["the quick brown fox"] * 20)
            seeded = client.completions.create(model="champ", prompt=prompt, max_tokens=12, seed=5, temperature=1.0)
            again = client.completions.create(model="champ", prompt=prompt, max_tokens=12, seed=5, temperature=1.0)
        assert seeded.choices[0].text == again.choices[0].text != ""
        answer = ask(server)
        status = settled(server)
        assert status["counts"]["compared"] == status["counts"]["offered"] == 3, status["counts"]
        (rival,) = status["challengers"]
        assert rival["scoring"]["path"] == "vllm"
        assert rival["weights"]["own_bytes"] > 0
        (seen,) = httpx.get(f"{server.url}/shadow/exchanges/{answer.id}", timeout=60, headers=KEY).json()["exchanges"]
        assert seen["challengers"]["rival"]["comparison"]["exact_match"] == 1.0


def alone(folder: Path, **limits: float) -> dict[str, Any]:
    """A champion and its rival with limits of the shadow's."""
    models = make(folder / "models")
    return {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challenger": {"model": models["qwen2"], "name": "rival", "engine_args": SMALL},
        "placement": "dedicated",
        "shadow": {"limits": limits},
        "auth": {"shadow_key": "secret"},
        "record": {"url": str(folder / "record")},
    }


@pytest.mark.chaos
def test_a_challenger_that_never_loads_is_ended_and_the_champion_serves(tmp_path: Path) -> None:
    switch = tmp_path / "fault"
    switch.write_text("never_loads rival")
    with running(alone(tmp_path, start_timeout_s=5), tmp_path, environment=injected(switch)) as server:
        assert ask(server).choices[0].message.content
        status = settled(server)
        seen = status["challengers"][0]
        assert (seen["ready"], seen["detail"], seen["quarantine"]) == (False, "it was not up within 5 s", None)
        assert (status["phase"], status["counts"]["shed"]) == ("off", {"challenger_not_ready": 1})
        assert len(engine_pids(server)) == 1
        assert not (tmp_path / "record" / "quarantine.json").exists()
