"""What one engine did, counted in the API process from the statistics that vLLM's core sends with its outputs.

A Traffic is one of vLLM's stat loggers, by shape and not by class, so that nothing here imports vllm. ``record`` runs
in the event loop for every step of the engine: a dozen additions (0.3 us a step, 1.3 with a request that finishes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def _never_busy() -> float:
    return 0.0


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
        busy_s: asks for the seconds in which the engine was stepped so far.
        each_s: what every request that was there all the time has had of them: each step's, split evenly over the
            requests in it. Over all requests the rises from coming to going add up to busy_s.
    """

    steps: int = 0
    running_steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_used_fraction: float = 0.0
    finished: Mapping[Kind, Finished] = field(default_factory=_kinds)
    busy_s: Callable[[], float] = _never_busy
    each_s: float = 0.0
    _told_s: float = 0.0

    @property
    def mark(self) -> tuple[int, int]:
        """Where it stands, for ``batch_since``: two reads, cheap enough for the answer's path."""
        return self.steps, self.running_steps

    def batch_since(self, mark: tuple[int, int]) -> float | None:
        """Mean number of requests that ran in the engine's steps since ``mark``; None without a step."""
        steps = self.steps - mark[0]
        return (self.running_steps - mark[1]) / steps if steps else None

    def watch(self, busy_s: Callable[[], float]) -> None:
        """Count busy seconds from now on: what the engine did while it was loaded is nobody's."""
        self.busy_s, self._told_s = busy_s, busy_s()

    # vLLM's stat logger

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_more: Any) -> None:
        """One step. Either may be None."""
        finished = () if iteration_stats is None else iteration_stats.finished_requests
        if scheduler_stats is not None:
            self.steps += 1
            self.running = scheduler_stats.num_running_reqs
            running = self.running + len(finished)  # these ran in this step too
            self.running_steps += running
            self._split(running)
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

    def _split(self, running: int) -> None:
        before_s, self._told_s = self._told_s, self.busy_s()
        if running:  # else all of it was aborted
            self.each_s += (self._told_s - before_s) / running

    def log(self) -> None:
        """Nothing is printed."""

    def log_engine_initialized(self) -> None:
        """Nothing is printed."""


def share_of(each_s: float, waited_s: float, served_s: float, num_tokens: Sequence[int]) -> float | None:
    """A request's share of its engine's busy seconds; None where the engine did not say how long it served it.

    Args:
        each_s: by how much ``Traffic.each_s`` rose from its coming to its end.
        waited_s: of that time, in the engine's queue: the steps meanwhile were others'.
        served_s: of that time, from the first step to the last token.
        num_tokens: of each of its answers, which are as many requests to the engine; the longest was there to the end.
    """
    longest = max(num_tokens, default=0)
    if each_s <= 0.0 or served_s <= 0.0 or not longest:
        return None
    return each_s * served_s / (waited_s + served_s) * sum(num_tokens) / longest
