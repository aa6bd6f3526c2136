"""What one engine did, counted in the API process from the statistics that vLLM's core sends with its outputs.

A Traffic is one of vLLM's stat loggers, by shape and not by class, so that nothing here imports vllm. ``record`` runs
in the event loop for every step of the engine: a dozen additions (0.3 us a step, 1.3 with a request that finishes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What a request to an engine was for. Its id says so: a scoring pass has an id that starts with ``score-``."""

    ANSWER = "answer"
    SCORE = "score"

    @staticmethod
    def of(request_id: str | None) -> Kind:
        """The kind, from the id."""
        return Kind.SCORE if (request_id or "").startswith("score-") else Kind.ANSWER


@dataclass(slots=True)
class Finished:
    """Sums over finished requests of one kind. The times are the engine's own and overlap within a batch."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


def _kinds() -> dict[Kind, Finished]:
    return {kind: Finished() for kind in Kind}


@dataclass(slots=True)
class Traffic:
    """Counts since the engine was connected.

    Attributes:
        steps: engine iterations that told of the scheduler.
        running_steps: over these, the sum of requests that were running: divided by ``steps``, the mean batch.
        running: requests running at the last step.
        waiting: requests waiting at the last step.
        kv_used_fraction: of the KV cache's blocks, at the last step.
        finished: sums over finished requests, by kind.
    """

    steps: int = 0
    running_steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_used_fraction: float = 0.0
    finished: Mapping[Kind, Finished] = field(default_factory=_kinds)

    @property
    def mark(self) -> tuple[int, int]:
        """Where it stands, for ``batch_since``: two reads, cheap enough for the answer's path."""
        return self.steps, self.running_steps

    def batch_since(self, mark: tuple[int, int]) -> float | None:
        """Mean number of requests that ran in the engine's steps since ``mark``; None without a step."""
        steps = self.steps - mark[0]
        return (self.running_steps - mark[1]) / steps if steps else None

    # vLLM's stat logger

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_more: Any) -> None:
        """One step. Either may be None."""
        finished = () if iteration_stats is None else iteration_stats.finished_requests
        if scheduler_stats is not None:
            self.steps += 1
            self.running = scheduler_stats.num_running_reqs
            self.running_steps += self.running + len(finished)  # these ran in this step too
            self.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self.kv_used_fraction = scheduler_stats.kv_cache_usage
        for one in finished:
            sums = self.finished[Kind.of(one.request_id)]
            sums.requests += 1
            sums.prompt_tokens += one.num_prompt_tokens
            sums.cached_prompt_tokens += max(0, one.num_cached_tokens)
            sums.generated_tokens += one.num_generation_tokens
            sums.queue_s += one.queued_time
            sums.prefill_s += one.prefill_time
            sums.decode_s += one.decode_time

    def log(self) -> None:
        """Nothing is printed."""

    def log_engine_initialized(self) -> None:
        """Nothing is printed."""
