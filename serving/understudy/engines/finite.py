"""A challenger whose logits are no numbers: the request ends as ``not_finite`` at the step that finds it.

From NaN vLLM samples a token as from anything else (the first of the vocabulary on the CPU), so an answer made of it
looks like an answer. A scoring pass sees it in its log-probabilities; an answer of the challenger's own shows none. So
each row that is sampled from is looked at, before grammar and penalties touch it. -inf is a number here: a token that
the model rules out. The look takes under 1% of lm_head's time (CPU, 32,000 tokens and more: 11 us a row beside 5 ms).
The champion's core has none of it.

vLLM counts NaN itself (VLLM_COMPUTE_NANS_IN_LOGITS), for all cores of a process at once, and its first model runner
takes row i for request i, which with drafted tokens is another one. What is its own here is which request a row is of.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from understudy.errors import NotFinite


def install(engine: Any, runner: Any) -> bool:
    """Make it so for one core; False where nobody looks.

    Args:
        engine: a vLLM EngineCore that serves a challenger.
        runner: its model runner; None where it is in other processes (tensor parallelism). The first one looks by
            itself where a step ends when it returns; launched ahead (a GPU) it would have to wait for the device. The
            second one counts on the device; that has not run.
    """
    if runner is None:
        return False
    if hasattr(runner, "prompt_logprobs_worker"):  # vLLM's second model runner
        runner.sampler.compute_nans = True
    elif not runner.use_async_scheduling:
        look_before_sampling(runner)
    else:
        return False
    end_what_is_no_number(engine.scheduler)
    return True


def look_before_sampling(runner: Any) -> None:
    """vLLM's first model runner: its output says which requests had rows with NaN."""
    sample_tokens = runner.sample_tokens

    def look_and_sample(grammar_output: Any) -> Any:
        found = without_numbers(runner)
        output = sample_tokens(grammar_output)
        if found:  # else left alone: an output of a step without requests is one constant of vLLM's
            output.num_nans_in_logits = dict.fromkeys(found, 1)
        return output

    runner.sample_tokens = look_and_sample


def without_numbers(runner: Any) -> list[str]:
    """The requests whose logits of this step have a NaN: one row each, and one for each drafted token."""
    state = runner.execute_model_state
    if state is None or state.logits is None:
        return []
    bad = state.logits.amax(dim=-1).isnan()  # the maximum of a row with NaN is NaN; one pass and no copy
    if not bool(bad.any()):
        return []
    request_ids = runner.input_batch.req_ids
    drafted = state.spec_decode_metadata
    rows = [1] * len(request_ids) if drafted is None else [1 + count for count in drafted.num_draft_tokens]
    return [each for each, some in zip(request_ids, bad.split(rows), strict=True) if bool(some.any())]


def end_what_is_no_number(scheduler: Any) -> None:
    """A request with NaN in its logits gets nothing more out of them: it ends, and says why as its stop reason."""
    update = scheduler.update_from_output

    def update_and_end(scheduled: Any, output: Any) -> dict[int, EngineCoreOutputs]:
        given: dict[int, EngineCoreOutputs] = update(scheduled, output)
        broken = {request_id for request_id, count in (output.num_nans_in_logits or {}).items() if count}
        if not broken:
            return given
        ended = {request.request_id: request.client_index for request in finish(broken)}
        for client, outputs in given.items():  # what this step gave of them is replaced, also where it was the last
            ended |= {each.request_id: client for each in outputs.outputs if each.request_id in broken}
            outputs.outputs = [each for each in outputs.outputs if each.request_id not in broken]
        for request_id, client in ended.items():
            given.setdefault(client, EngineCoreOutputs()).outputs.append(failed(request_id))
        return given

    def finish(request_ids: set[str]) -> list[Any]:
        finished: list[Any] = scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ERROR)
        return finished

    scheduler.update_from_output = update_and_end


def failed(request_id: str) -> EngineCoreOutput:
    """What the API process is told of it."""
    return EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR, stop_reason=NotFinite.reason)
