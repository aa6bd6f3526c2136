"""Scoring inside the engine process: hooks on a challenger's core; scoring.py is the API process's half.

A hook reads the hidden states of a step just before vLLM drops them, takes the rows that predict a champion's
tokens, of all scoring requests in the step together, and scores them in one call. Rows of the prompt never reach
lm_head, nothing of size [num_tokens, vocab_size] is made (path ``fused``), and the prefix cache serves the prompt,
but never a row that must be scored. A reading lives on vLLM's own state of its request and goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from understudy.engines.heads import NoHead, usable_head
from understudy.engines.reading import SLICE_ROWS, Chunk, Eye, Measure, Reading, read
from understudy.engines.scoring import KEY
from understudy_kernels import Scores, score_logits

LOGITS_ROWS = 64
"""Rows of logits at a time on the path ``logits``: 64 x 152k in float32 are 37 MiB."""


def install(core: Any) -> dict[str, str]:
    """Make a core score, and say how: {"path": "fused" | "logits" | "vllm", "why": why no better one}.

    Args:
        core: a vLLM EngineCore that serves a challenger. The champion's is never given.
    """
    try:
        runner = core.model_executor.driver_worker.worker.model_runner
    except AttributeError:
        return {"path": "vllm", "why": "its model runs in other processes"}
    with torch.inference_mode():
        path, eye = choose(runner)
    point = getattr(runner, "understudy_point", None)
    if point is not None:
        eye = Eye(partial(measure_in_slices, eye.measure, point), eye.head, point)
    hook = hook_v2 if hasattr(runner, "prompt_logprobs_worker") else hook_v1
    hook(runner, eye)
    limit_prefix_hits(core.scheduler.kv_cache_manager)
    return path


def choose(runner: Any) -> tuple[dict[str, str], Eye]:
    """The fused path where the probe allows it, else the model's own logits."""
    model, config = runner.get_model(), runner.model_config
    try:
        head = usable_head(model, config.get_hidden_size(), config.dtype)
    except NoHead as fault:
        return {"path": "logits", "why": str(fault)}, Eye(partial(measure_logits, model))
    return {"path": "fused", "why": ""}, Eye(head.score, head)


def measure_logits(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Scores from the model's own logits, LOGITS_ROWS rows at a time."""
    pieces = zip(hidden.split(LOGITS_ROWS), targets.split(LOGITS_ROWS), strict=True)
    return joined([score_logits(model.compute_logits(rows), some) for rows, some in pieces])


def measure_in_slices(
    measure: Measure, point: Callable[[], None], hidden: torch.Tensor, targets: torch.Tensor
) -> Scores:
    """The same, SLICE_ROWS rows at a time, with a word to the champion before each (preempt.py)."""
    parts = []
    for rows, some in zip(hidden.split(SLICE_ROWS), targets.split(SLICE_ROWS), strict=True):
        point()
        parts.append(measure(rows, some))
    return joined(parts)


def joined(parts: Sequence[Scores]) -> Scores:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    return Scores(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Scores)})


def hook_v1(runner: Any, eye: Eye) -> None:
    """vLLM's first model runner, which the CPU uses: beside its prompt logprobs."""
    prompt_logprobs, sample_tokens = runner._get_prompt_logprobs_dict, runner.sample_tokens
    finished: dict[str, torch.Tensor] = {}

    def read_and_go_on(hidden: torch.Tensor, num_scheduled: Mapping[str, int]) -> Any:
        chunks = list(chunks_of(num_scheduled))
        read((chunk for _, chunk in chunks), hidden, eye)
        finished.update(
            (request_id, chunk.reading.rows.cpu())
            for request_id, chunk in chunks
            if chunk.start < chunk.reading.end <= chunk.start + chunk.count
        )
        return prompt_logprobs(hidden, num_scheduled)

    def chunks_of(num_scheduled: Mapping[str, int]) -> Iterable[tuple[str, Chunk]]:
        for request_id, count in num_scheduled.items():
            request = runner.requests[request_id]
            reading = reading_of(request)
            if reading is not None:
                index = runner.input_batch.req_id_to_index[request_id]
                offset = int(runner.query_start_loc.np[index])
                yield request_id, Chunk(reading, request.num_computed_tokens, count, offset)

    def reading_of(request: Any) -> Reading | None:
        if not hasattr(request, "understudy_reading"):
            asked = None if request.sampling_params is None else request.sampling_params.extra_args
            request.understudy_reading = Reading.of(asked, runner.device)
        known: Reading | None = request.understudy_reading
        return known

    def sample_and_attach(grammar_output: Any) -> Any:
        output = sample_tokens(grammar_output)
        if finished:
            # a fresh dict: an output of a step without requests is one constant of vLLM's
            getattr(output, "_model_runner_output", output).prompt_token_id_logprobs_dict = dict(finished)
            finished.clear()
        return output

    runner._get_prompt_logprobs_dict = read_and_go_on
    runner.sample_tokens = sample_and_attach


def hook_v2(runner: Any, eye: Eye) -> None:
    """vLLM's second model runner, which a GPU uses: its worker for prompt logprobs has the request's whole life.

    Written after vLLM 0.32's source; it has not run on a GPU.
    """
    worker = runner.prompt_logprobs_worker
    add_request, remove_request = worker.add_request, worker.remove_request
    of_token_ids = worker.compute_prompt_token_id_logprobs
    readings: dict[str, Reading] = {}

    def add(request_id: str, index: int, parameters: Any) -> None:
        add_request(request_id, index, parameters)
        reading = Reading.of(parameters.extra_args, runner.device)
        if reading is not None:
            readings[request_id] = reading

    def remove(request_id: str) -> None:
        remove_request(request_id)
        readings.pop(request_id, None)

    def compute(logits_of: Any, hidden: torch.Tensor, batch: Any, prompt_lens: Any) -> dict[str, torch.Tensor]:
        theirs: dict[str, torch.Tensor] = of_token_ids(logits_of, hidden, batch, prompt_lens)
        if not readings:
            return theirs
        chunks = [
            (
                request_id,
                Chunk(
                    readings[request_id],
                    int(batch.num_computed_prefill_tokens_np[index]),
                    int(batch.num_scheduled_tokens[index]),
                    int(batch.query_start_loc_np[index]),
                ),
            )
            for index, request_id in enumerate(batch.req_ids)
            if request_id in readings
        ]
        read((chunk for _, chunk in chunks), hidden, eye)
        return theirs | {
            request_id: chunk.reading.rows
            for request_id, chunk in chunks
            if chunk.start < chunk.reading.end <= chunk.start + chunk.count
        }

    worker.add_request, worker.remove_request = add, remove
    worker.compute_prompt_token_id_logprobs = compute


def limit_prefix_hits(manager: Any) -> None:
    """A row that must be scored is computed, even where the challenger has met the very same answer before.

    vLLM itself reads no prefix cache for a request with prompt logprobs; here it may, up to the answer's first row.
    """
    lookup, find = manager.get_computed_blocks, manager.coordinator.find_longest_cache_hit
    limits: list[int] = []

    def lookup_limited(request: Any) -> Any:
        asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEY)
        if asked is None:
            return lookup(request)
        limits.append(asked["first"])
        try:
            return lookup(request)
        finally:
            limits.clear()

    def find_limited(block_hashes: Any, max_length: int, *args: Any, **kwargs: Any) -> Any:
        return find(block_hashes, min([max_length, *limits]), *args, **kwargs)

    manager.get_computed_blocks = lookup_limited
    manager.coordinator.find_longest_cache_hit = find_limited
