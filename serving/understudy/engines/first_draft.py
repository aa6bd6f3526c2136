"""The first draft goes with the prompt: the step that reads the last of a prompt verifies the answer's beginning too.

vLLM asks a proposer after a step, so the first draft would be verified in the second step, and a short answer that
the challenger repeats would take two where one is enough. Here the scheduler's output is extended just before it is
handed on: the tokens are drafts like any others, in the room that the step has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from understudy.engines.draft import lengths
from understudy.engines.speculate import DraftProposer, answer_of


def install(scheduler: Any, proposer: DraftProposer) -> None:
    """Let a scheduler of vLLM's draft with its prompts; not with a pipeline or KV connector, which read it earlier."""
    if scheduler.use_pp or scheduler.connector is not None:
        return
    advance = scheduler._update_after_schedule

    def draft_and_advance(output: Any) -> None:
        ending = [
            request for request in map(scheduler.requests.get, output.num_scheduled_tokens) if ends(request, output)
        ]
        if ending:
            draft(scheduler, proposer, output, ending)
        advance(output)

    scheduler._update_after_schedule = draft_and_advance


def ends(request: Any, output: Any) -> bool:
    """Whether its prompt is read to the end in this step, and may be followed by a draft.

    A grammar checks drafts before they are scheduled; log-probabilities of a prompt are counted by scheduled tokens.
    """
    return (
        request.num_output_tokens == 0
        and request.num_computed_tokens + output.num_scheduled_tokens[request.request_id] == request.num_prompt_tokens
        and not request.use_structured_output
        and request.sampling_params is not None
        and request.sampling_params.prompt_logprobs is None
    )


def draft(scheduler: Any, proposer: DraftProposer, output: Any, ending: Sequence[Any]) -> None:
    """Add the first drafts of these requests, as far as step, answer, context and KV cache have room."""
    num_rows = len(output.num_scheduled_tokens)
    room = (scheduler.max_num_scheduled_tokens - output.total_num_scheduled_tokens) // len(ending)
    most = min(room, proposer.share(num_rows))
    answers = [answer_of(request.request_id, request.sampling_params) for request in ending]
    rows = []
    for request, answer in zip(ending, answers, strict=True):
        context = scheduler.max_model_len - 1 - request.num_prompt_tokens
        rows.append((proposer.habits.odds, max(0, min(most, len(answer), request.max_tokens - 1, context))))
    chosen = lengths(rows, num_rows, proposer.cost.price(num_rows))
    for request, answer, length in zip(ending, answers, chosen, strict=True):
        if length:
            extend(scheduler, output, request, list(answer[:length]))


def extend(scheduler: Any, output: Any, request: Any, tokens: list[int]) -> None:
    """Schedule ``tokens`` behind the request's prompt, unless the KV cache has no room for them."""
    name = request.request_id
    count = output.num_scheduled_tokens[name] + len(tokens)
    blocks = scheduler.kv_cache_manager.allocate_slots(request, count)
    if blocks is None:
        return
    more = blocks.get_block_ids()
    new = next((each for each in output.scheduled_new_reqs if each.req_id == name), None)
    if new is not None:
        new.block_ids = joined(new.block_ids, more)
    else:
        cached = output.scheduled_cached_reqs
        place = cached.req_ids.index(name)
        cached.new_block_ids[place] = joined(cached.new_block_ids[place] or tuple([] for _ in more), more)
    output.num_scheduled_tokens[name] = count
    output.total_num_scheduled_tokens += len(tokens)
    output.scheduled_spec_decode_tokens[name] = tokens


def joined(blocks: tuple[list[int], ...], more: tuple[list[int], ...]) -> tuple[list[int], ...]:
    """The block ids of each group of layers, one after the other."""
    return tuple([*some, *others] for some, others in zip(blocks, more, strict=True))
