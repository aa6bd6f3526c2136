"""The shared placement on a GPU. Nothing of it has run yet: there was no GPU to run it on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.builders import in_loop
from tests.serving.models import make

from understudy.config import parse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

SMALL: dict[str, Any] = {"kv_cache_memory_bytes": 256 * 2**20, "max_model_len": 1024}
PROMPT = [5, 6, 7, 40, 9, 300]


def test_a_champions_kernel_does_not_wait_for_a_challengers_that_was_launched_before() -> None:
    from understudy.engines.core import HIGH_PRIORITY, LOW_PRIORITY, is_done, new_stream

    low, high = new_stream(LOW_PRIORITY), new_stream(HIGH_PRIORITY)
    small = torch.ones(8, device="cuda")
    torch.cuda.synchronize()
    launched: Any = Future()
    launched.async_output = SimpleNamespace(copy_event=torch.cuda.Event())
    with torch.cuda.stream(low):
        torch.cuda._sleep(2_000_000_000)  # cycles: about a second
        launched.async_output.copy_event.record(low)
    with torch.cuda.stream(high):
        assert (small + 1).sum().item() == 16  # waits for its own stream only
    assert not is_done(launched)
    torch.cuda.synchronize()
    assert is_done(launched)


def test_a_captured_graph_has_the_priority_of_the_stream_it_is_launched_on(tmp_path: Path) -> None:
    """PyTorch lets its kernels keep that of the stream they were captured on, which vLLM makes without one."""
    script = """
import torch
from understudy.engines.core import HIGH_PRIORITY, LOW_PRIORITY, new_stream
low, high = new_stream(LOW_PRIORITY), new_stream(HIGH_PRIORITY)
data = torch.ones(1 << 22, device="cuda")
graph, plain = torch.cuda.CUDAGraph(), torch.cuda.Stream()
with torch.cuda.graph(graph, stream=plain):
    for _ in range(20):
        data.mul_(1.0)
crowd = torch.ones(1 << 28, device="cuda")
def milliseconds(stream):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(low):
        for _ in range(20):
            crowd.mul_(1.0)
    with torch.cuda.stream(stream):
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)
for _ in range(3):
    milliseconds(high), milliseconds(low)
print(min(milliseconds(low) for _ in range(9)) / min(milliseconds(high) for _ in range(9)))
"""
    from understudy.engines.placements import environment

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment(())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) > 2.0, done


async def generate(llm: Any, num_tokens: int, lora: Any = None) -> list[int]:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    final: Any = None
    parameters = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    async for output in llm.generate(tokens_input(PROMPT), parameters, f"g-{time.time_ns()}", lora_request=lora):
        final = output
    return list(final.outputs[0].token_ids)


@in_loop
async def test_the_champion_beside_aliased_challengers(tmp_path: Path) -> None:
    from understudy.engines import placements

    models = make(tmp_path)
    own = {**SMALL, "load_format": "safetensors"}
    challengers = [
        {"model": models["llama"], "name": "same", "engine_args": SMALL},
        {"model": models["llama"], "lora": models["lora"], "name": "lora", "engine_args": SMALL},
        {"model": models["llama"], "lora": models["lora"], "name": "lora-own", "engine_args": own},
    ]
    config = {"champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL}, "challengers": challengers}
    engines = await placements.start(parse(config), tmp_path / "replica")
    try:
        same, lora, lora_own = engines.challengers
        assert all(challenger.health().ready for challenger in engines.challengers)
        expected = await generate(engines.champion, 32)
        assert await generate(same.llm, 32) == expected
        assert await generate(lora.llm, 32, lora._lora) == await generate(lora_own.llm, 32, lora_own._lora) != expected
        assert await generate(engines.champion, 32) == expected
        assert same.weights["own_bytes"] == 0
        assert lora.steps().longest_ms > 0.0  # by CUDA events
    finally:
        await engines.close()
