"""Every kind of challenger beside a champion in one engine process: aliased, LoRA, quantised, another architecture.

Aliased ones use the champion's tensors. Each has a twin that loads its own (it names ``load_format``), and must give
the very same tokens and log-probabilities.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.models import make
from tests.serving.quantised import save_w4a16, save_w8a8

from understudy.config import parse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 32 * 2**20, "max_model_len": 1024}
OWN = {"load_format": "safetensors"}
PROMPTS = [[5 + number, 6, 7, 40, 9 + number, 300] for number in range(6)]


@dataclass
class World:
    """A champion and its challengers, and the model that the W4A16 one is to agree with."""

    engines: Any
    plain: Any

    def challenger(self, name: str) -> Any:
        return next(each for each in self.engines.challengers if each.name == name)

    async def answers(self, name: str) -> list[Any]:
        """Greedy tokens with the log-probabilities of all: what a model does, in full."""
        llm, lora = self.engines.champion, None
        if name != "champ":
            llm, lora = self.challenger(name).llm, self.challenger(name)._lora
        return [await answer(llm, prompt, lora) for prompt in PROMPTS]


async def answer(llm: Any, prompt: list[int], lora: Any = None) -> tuple[list[int], list[float]]:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    final: Any = None
    parameters = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=1)
    async for output in llm.generate(tokens_input(prompt), parameters, f"t-{time.time_ns()}", lora_request=lora):
        final = output
    tokens = list(final.outputs[0].token_ids)
    return tokens, [row[token].logprob for row, token in zip(final.outputs[0].logprobs, tokens, strict=True)]


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    from understudy.engines import placements

    models = make(folder)
    w4a16, plain = save_w4a16(models["llama"], folder / "w4a16")
    challengers = {
        "same": {"model": models["llama"]},
        "fp8kv": {"model": models["llama"], "engine_args": {"kv_cache_dtype": "fp8"}},
        "fp8kv-own": {"model": models["llama"], "engine_args": {"kv_cache_dtype": "fp8", **OWN}},
        "lora": {"model": models["llama"], "lora": models["lora"]},
        "lora-own": {"model": models["llama"], "lora": models["lora"], "engine_args": OWN},
        "w8a8": {"model": save_w8a8(models["llama"], folder / "w8a8")},
        "w4a16": {"model": w4a16},
        "qwen2": {"model": models["qwen2"]},
        "other": {"model": models["other"]},
    }
    config = parse(
        {
            "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
            "challengers": [
                {**each, "name": name, "engine_args": SMALL | each.get("engine_args", {})}
                for name, each in challengers.items()
            ],
        }
    )
    engines = await placements.start(config, folder / "replica")
    try:
        yield World(engines, plain)
    finally:
        await engines.close()


@pytest.fixture(scope="module")
def runner() -> Any:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def running(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Any:
    context = world(tmp_path_factory.mktemp("variants"))
    yield runner.run(context.__aenter__())
    runner.run(context.__aexit__(None, None, None))


def in_its_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(runner: asyncio.Runner, **fixtures: Any) -> None:
        runner.run(test(**fixtures))

    parameters = inspect.signature(test).parameters.values()
    added = inspect.Parameter("runner", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*parameters, added])  # type: ignore[attr-defined]
    return run


ALIASED = ("same", "fp8kv", "lora")
ALL = (*ALIASED, "fp8kv-own", "lora-own", "w8a8", "w4a16", "qwen2", "other")


@pytest.mark.parametrize("name", ALL)
def test_it_came_up_and_shares_what_it_can(running: World, name: str) -> None:
    challenger = running.challenger(name)
    assert challenger.health().ready, challenger.health().detail
    shared, own = challenger.weights["shared_bytes"], challenger.weights["own_bytes"]
    if name in ALIASED:
        assert (own > 0) is (name == "lora")  # room for the adapter
        assert shared > 400_000  # all of it, as bfloat16
    else:
        assert shared == 0
        assert own > 0


@in_its_loop
async def test_aliasing_changes_nobodys_output(running: World) -> None:
    champion = await running.answers("champ")
    assert await running.answers("same") == champion
    for name in ("lora", "fp8kv"):
        assert await running.answers(name) == await running.answers(f"{name}-own")
        assert await running.answers(name) != champion
    assert await running.answers("champ") == champion


@in_its_loop
async def test_the_champions_tensors_are_as_they_were(running: World) -> None:
    """By vLLM's own checksums, before and after every challenger worked on them."""
    core = running.engines.champion.engine_core
    before = await core.call_utility_async("compute_weight_checksums")
    for name in ALL:
        await running.answers(name)
    assert await core.call_utility_async("compute_weight_checksums") == before


@in_its_loop
async def test_each_variant_answers_and_scores_and_is_no_copy_of_the_champion(running: World) -> None:
    champion = await running.answers("champ")
    for name in ("w8a8", "w4a16", "qwen2", "other", "lora"):
        assert await running.answers(name) != champion
        score = await running.challenger(name)._score_one(tuple(PROMPTS[0]), (10, 11, 12))
        assert len(score.logprobs) == 3
    near = sum(a[0][0] == b[0][0] for a, b in zip(await running.answers("w8a8"), champion, strict=True))
    assert near >= len(PROMPTS) - 1  # int8 is close


@in_its_loop
async def test_w4a16_computes_what_its_weights_say(running: World) -> None:
    answers = await running.answers("w4a16")
    with torch.inference_mode():
        for (tokens, logprobs), prompt in zip(answers, PROMPTS, strict=True):
            rows = running.plain(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
            assert rows[tokens[0]].item() == pytest.approx(logprobs[0], abs=0.15)


def test_other_tokenizers_are_told_apart(running: World) -> None:
    assert not running.challenger("other").same_tokenizer
    assert all(running.challenger(name).same_tokenizer for name in ALL if name != "other")
