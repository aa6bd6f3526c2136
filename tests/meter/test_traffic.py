"""vLLM's statistics, by their names (v1/metrics/stats.py); tests/meter/test_real.py has the real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from understudy.meter.traffic import Kind, Traffic


def scheduler(running: int, waiting: int = 0, kv: float = 0.0) -> Any:
    return SimpleNamespace(
        num_running_reqs=running, num_waiting_reqs=waiting, num_skipped_waiting_reqs=1, kv_cache_usage=kv
    )


def finished(request_id: str, generated: int = 5) -> Any:
    return SimpleNamespace(
        request_id=request_id, num_prompt_tokens=10, num_cached_tokens=4, num_generation_tokens=generated,
        queued_time=0.5, prefill_time=0.25, decode_time=2.0,
    )  # fmt: skip


def iteration(*requests: Any) -> Any:
    return SimpleNamespace(finished_requests=list(requests))


def test_a_scoring_pass_is_not_an_answer() -> None:
    traffic = Traffic()
    traffic.record(None, iteration(finished("answer-1"), finished("score-1", 1), finished("chatcmpl-9")))
    assert traffic.finished[Kind.ANSWER].requests == 2
    assert traffic.finished[Kind.ANSWER].generated_tokens == 10
    assert traffic.finished[Kind.SCORE].generated_tokens == 1
    assert traffic.finished[Kind.SCORE].prefill_s == 0.25


def test_the_batch_is_the_mean_over_the_steps_since_the_mark_with_those_that_finish_in_them() -> None:
    traffic = Traffic()
    traffic.record(scheduler(30), None)  # before
    mark = traffic.mark
    assert traffic.batch_since(mark) is None
    traffic.record(scheduler(4), iteration())
    traffic.record(scheduler(1), iteration(finished("a"), finished("b")))
    assert traffic.batch_since(mark) == pytest.approx((4 + 3) / 2)


def test_gauges_are_those_of_the_last_step() -> None:
    traffic = Traffic()
    traffic.record(scheduler(4, 2, 0.5), iteration())
    traffic.record(None, iteration())
    assert (traffic.running, traffic.waiting, traffic.kv_used_fraction) == (4, 3, 0.5)
