"""Logits that are no numbers: which requests they are of, and how those end. Stand-ins for vLLM's runner and scheduler;
tests/serving/chaos has the real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

from understudy.engines import finite

NAN, INF = float("nan"), float("inf")


class Runner:
    """vLLM's first model runner, as far as it is asked."""

    use_async_scheduling = False

    def __init__(self, logits: Any, *request_ids: str, drafted: list[int] | None = None) -> None:
        metadata = None if drafted is None else SimpleNamespace(num_draft_tokens=drafted)
        logits = None if logits is None else torch.tensor(logits)
        self.execute_model_state: Any = SimpleNamespace(logits=logits, spec_decode_metadata=metadata)
        self.input_batch = SimpleNamespace(req_ids=list(request_ids))

    def sample_tokens(self, _grammar: Any) -> Any:
        self.execute_model_state = None  # as vLLM's does
        return SimpleNamespace(num_nans_in_logits={})


class Scheduler:
    """Gives what it was made with, and remembers who was finished from outside."""

    def __init__(self, running: dict[str, int], outputs: dict[int, EngineCoreOutputs]) -> None:
        self.running, self.outputs = running, outputs

    def update_from_output(self, _scheduled: Any, _output: Any) -> dict[int, EngineCoreOutputs]:
        return self.outputs

    def finish_requests(self, request_ids: set[str], _status: Any) -> list[Any]:
        known = [each for each in sorted(request_ids) if each in self.running]
        return [SimpleNamespace(request_id=each, client_index=self.running.pop(each)) for each in known]


def install(runner: Any, scheduler: Any = None) -> bool:
    return finite.install(SimpleNamespace(scheduler=scheduler or Scheduler({}, {})), runner)


@pytest.mark.parametrize(
    ("logits", "drafted", "found"),
    [
        ([[0.0, 1.0], [NAN, 1.0]], None, ["b"]),
        ([[0.0, -INF], [-INF, 1.0]], None, []),  # tokens that are ruled out
        ([[0.0, 1.0], [0.0, 1.0], [0.0, NAN], [0.0, 1.0]], [2, 0], ["a"]),  # three rows of a, one of b
        ([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [NAN, NAN]], [2, 0], ["b"]),
        ([[NAN, 0.0], [0.0, NAN]], [0, 0], ["a", "b"]),
    ],
)
def test_the_requests_of_rows_with_nan(logits: Any, drafted: list[int] | None, found: list[str]) -> None:
    runner = Runner(logits, "a", "b", drafted=drafted)
    assert install(runner)
    assert runner.sample_tokens(None).num_nans_in_logits == dict.fromkeys(found, 1)


def test_a_step_without_logits_is_left_alone() -> None:
    runner = Runner(None)
    assert install(runner)
    assert runner.sample_tokens(None).num_nans_in_logits == {}
    assert runner.sample_tokens(None).num_nans_in_logits == {}  # and one without a step


def test_vllms_second_runner_counts_itself_and_one_that_launches_ahead_is_not_looked_at() -> None:
    second = SimpleNamespace(prompt_logprobs_worker=None, sampler=SimpleNamespace(compute_nans=False))
    assert install(second)
    assert second.sampler.compute_nans
    ahead = Runner([[NAN]], "a")
    ahead.use_async_scheduling = True
    assert not install(ahead)
    assert not install(None)  # in other processes
    assert ahead.sample_tokens(None).num_nans_in_logits == {}


@pytest.mark.parametrize("finished", [None, FinishReason.LENGTH])
def test_such_a_request_ends_and_others_go_on(finished: FinishReason | None) -> None:
    """Also where this step was its last, or gave nothing of it yet."""
    step = EngineCoreOutputs(
        outputs=[EngineCoreOutput("broken", [0], finish_reason=finished), EngineCoreOutput("well", [5])]
    )
    running = {"broken": 0, "well": 0, "reading": 1}
    if finished is not None:
        del running["broken"]
    scheduler = Scheduler(running, {0: step})
    install(Runner(None), scheduler)
    output = SimpleNamespace(num_nans_in_logits={"broken": 3, "reading": 1, "well": 0})
    given = scheduler.update_from_output(None, output)
    ends = {
        each.request_id: (client, each.new_token_ids, each.finish_reason, each.stop_reason)
        for client, outputs in given.items()
        for each in outputs.outputs
    }
    assert ends == {
        "broken": (0, [], FinishReason.ERROR, "not_finite"),
        "well": (0, [5], None, None),
        "reading": (1, [], FinishReason.ERROR, "not_finite"),
    }
    assert list(scheduler.running) == ["well"]


@pytest.mark.parametrize("counts", [None, {}, {"well": 0}])
def test_a_step_with_numbers_is_passed_on_as_it_is(counts: dict[str, int] | None) -> None:
    given = {0: EngineCoreOutputs(outputs=[EngineCoreOutput("well", [5])])}
    scheduler = Scheduler({"well": 0}, given)
    install(Runner(None), scheduler)
    assert scheduler.update_from_output(None, SimpleNamespace(num_nans_in_logits=counts)) is given
    assert list(scheduler.running) == ["well"]
