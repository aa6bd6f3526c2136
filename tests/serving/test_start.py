"""Other ways to start, and ways in which it must not start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import pytest
import yaml
from tests.serving.models import make
from tests.serving.process import MARK, marked_processes, running, serve_command, wait_for

SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
ROOT = Path(__file__).parents[2]


def run(config: object, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [*serve_command(path, 0), *more]
    environment = os.environ | {MARK: uuid.uuid4().hex}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def test_a_wrong_configuration_is_refused_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    started = time.monotonic()
    done = run({"champion": {"model": "m", "engin_args": {}}}, tmp_path)
    assert done.returncode == 2
    assert "champion.engin_args: unknown key; did you mean 'engine_args'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 10


def test_beyond_this_machine_the_shadow_needs_a_key(tmp_path: Path) -> None:
    done = run({"champion": {"model": "m"}}, tmp_path, "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "auth.shadow_key" in done.stderr


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run({"champion": {"model": "m"}}, tmp_path, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot listen" in done.stderr


@pytest.mark.slow
@pytest.mark.server
def test_a_missing_champion_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    done = run({"champion": {"model": str(tmp_path / "nowhere")}, "record": {"url": str(tmp_path / "r")}}, tmp_path)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("understudy: the champion did not come up:")
    assert "nowhere" in said


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(900)
def test_ray_serve_runs_the_shipped_serve_yaml(tmp_path: Path) -> None:
    """deploy/serve.yaml as it is, but for the models, the place of the record and the port."""
    models = make(tmp_path / "models")
    shipped = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    args = shipped["applications"][0]["args"]
    args["champion"] = {
        "model": models["llama"],
        "name": "champ",
        "lora": models["lora"],
        "engine_args": SMALL,
    }
    args["challenger"] = {"model": models["qwen2"], "name": "rival", "engine_args": SMALL}
    args["record"]["url"] = str(tmp_path / "record")

    def command(config: Path, port: int) -> list[str]:
        shipped["http_options"]["port"] = port
        config.write_text(yaml.safe_dump(shipped))
        return [str(Path(sys.executable).parent / "serve"), "run", str(config)]

    with running({}, tmp_path, command) as server:
        body = {"model": "champ", "prompt": "the quick", "max_tokens": 8}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status().json()
        assert answer["usage"]["completion_tokens"] == 8
        assert server.settled()["counts"]["compared"] == 1
        # The champion is the adapter; the base model beside it is answered, and is not the champion's exchange.
        base = httpx.post(f"{server.url}/v1/completions", json=body | {"model": models["llama"]}, timeout=60)
        assert base.json()["choices"][0]["text"] != answer["choices"][0]["text"]
        assert server.settled()["counts"]["shed"] == {"other_model": 1}
        ended = lambda: server.process.poll() is not None  # noqa: E731
        server.process.send_signal(signal.SIGINT)
        wait_for(ended, 90)
        wait_for(lambda: not marked_processes(server.mark), 60)
