"""A seed means the same, in however many steps the prompt is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.serving.models import make

pytestmark = pytest.mark.slow

PROMPT = {"prompt_token_ids": [3 + number % 50 for number in range(90)]}


def answers(engine: Any, max_tokens_in_a_step: int) -> list[tuple[int, ...]]:
    """Two seeded answers, one unseeded greedy one, from a prompt read in steps of so many tokens."""
    from vllm import SamplingParams

    core = engine.llm_engine.engine_core.engine_core
    core.scheduler.max_num_scheduled_tokens = max_tokens_in_a_step
    parameters = [
        SamplingParams(temperature=1.0, seed=5, max_tokens=12),
        SamplingParams(temperature=0.0, max_tokens=12),
        SamplingParams(temperature=1.0, seed=6, max_tokens=12),
    ]
    outputs = engine.generate([PROMPT] * 3, parameters, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def test_seeded_answers_do_not_depend_on_how_the_prompt_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.engines import placements, seeds

    for name, value in placements.environment(()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    from vllm import LLM

    engine = LLM(
        make(tmp_path)["llama"],
        enforce_eager=True,
        kv_cache_memory_bytes=32 * 2**20,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
    )
    core: Any = engine.llm_engine.engine_core.engine_core
    seeds.install(core)
    whole = answers(engine, 512)
    assert answers(engine, 512) == whole
    assert answers(engine, 16) == whole
