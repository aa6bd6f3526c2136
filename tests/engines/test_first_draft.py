"""The first draft with the prompt, on vLLM's names for a scheduler. It runs in tests/serving/test_speculative.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from understudy.engines import first_draft
from understudy.engines.draft import Habits
from understudy.engines.speculate import EXTRA_ARG
from understudy.engines.step_cost import StepCost

ANSWER = list(range(100, 140))
PROMPT = 20


class Blocks:
    """A KV cache with blocks of 8 tokens; what is allocated is a number for each new block."""

    def __init__(self, free: int = 100) -> None:
        self.free = free
        self.held: dict[str, int] = {}

    def allocate_slots(self, request: Any, num_new_tokens: int) -> Any:
        held = self.held.get(request.request_id, 0)
        needed = -(-(request.num_computed_tokens + num_new_tokens) // 8) - held
        if needed > self.free:
            return None
        self.free -= needed
        self.held[request.request_id] = held + needed
        return SimpleNamespace(get_block_ids=lambda: (list(range(held, held + needed)),))


def request(name: str, computed: int = 0, *, draft: bool = True, **more: Any) -> Any:
    parameters = SimpleNamespace(prompt_logprobs=None, extra_args={EXTRA_ARG: [ANSWER]} if draft else None)
    usual = {"num_output_tokens": 0, "use_structured_output": False, "max_tokens": 64, "sampling_params": parameters}
    return SimpleNamespace(request_id=name, num_computed_tokens=computed, num_prompt_tokens=PROMPT, **(usual | more))


def scheduled(
    *new: Any, cached: tuple[Any, ...] = (), counts: dict[str, int] | None = None, **more: Any
) -> tuple[Any, Any]:
    """(scheduler, its output), handed on as vLLM does."""
    requests = {each.request_id: each for each in (*new, *cached)}
    blocks = more.pop("blocks", None) or Blocks()
    counts = counts or {name: each.num_prompt_tokens - each.num_computed_tokens for name, each in requests.items()}
    advanced: list[int] = []
    usual = {"use_pp": False, "connector": None, "max_num_scheduled_tokens": 512, "max_model_len": 512}
    scheduler = SimpleNamespace(
        **(usual | more),
        requests=requests,
        kv_cache_manager=blocks,
        advanced=advanced,
        _update_after_schedule=lambda output: advanced.append(output.total_num_scheduled_tokens),
    )
    ids = {name: blocks.allocate_slots(each, counts[name]).get_block_ids() for name, each in requests.items()}
    output = SimpleNamespace(
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
        scheduled_spec_decode_tokens={},
        scheduled_new_reqs=[SimpleNamespace(req_id=each.request_id, block_ids=ids[each.request_id]) for each in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[each.request_id for each in cached],
            new_block_ids=[ids[each.request_id] if ids[each.request_id][0] else None for each in cached],
        ),
    )
    share = more.get("share", 127)
    proposer: Any = SimpleNamespace(habits=Habits(), cost=StepCost(), share=lambda _rows: share)
    first_draft.install(scheduler, proposer)
    scheduler._update_after_schedule(output)
    return scheduler, output


def test_a_prompts_last_step_has_the_beginning_of_the_answer_too_and_blocks_for_it() -> None:
    scheduler, output = scheduled(request("a"))
    drafted = output.scheduled_spec_decode_tokens["a"]
    assert drafted == ANSWER[: len(drafted)]
    assert len(drafted) > 20
    assert output.num_scheduled_tokens == {"a": PROMPT + len(drafted)}
    assert scheduler.advanced == [PROMPT + len(drafted)]  # vLLM goes on from there
    assert output.scheduled_new_reqs[0].block_ids == (list(range(-(-(PROMPT + len(drafted)) // 8))),)


@pytest.mark.parametrize("known", [True, False])
def test_the_last_piece_of_a_long_prompt_is_one_too(known: bool) -> None:
    """Its blocks are appended to those that this step brings, where it brings any."""
    one, blocks = request("a", 17), Blocks()
    if known:
        blocks.allocate_slots(one, 3)
    _, output = scheduled(cached=(one,), blocks=blocks)
    length = len(output.scheduled_spec_decode_tokens["a"])
    assert output.num_scheduled_tokens["a"] == 3 + length
    needed = list(range(-(-(PROMPT + length) // 8)))
    assert output.scheduled_cached_reqs.new_block_ids[0] == (needed[3:] if known else needed,)


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        ({"draft": False}, None),
        ({"num_output_tokens": 3}, None),
        ({"use_structured_output": True}, None),
        ({"sampling_params": SimpleNamespace(prompt_logprobs=0, extra_args={EXTRA_ARG: [ANSWER]})}, None),
        ({"sampling_params": None}, None),
        ({"max_tokens": 1}, None),
        ({}, {"a": PROMPT - 1}),  # the prompt is not at its end
    ],
)
def test_who_gets_none(more: dict[str, Any], counts: dict[str, int] | None) -> None:
    scheduler, output = scheduled(request("a", **more), counts=counts)
    assert output.scheduled_spec_decode_tokens == {}
    assert scheduler.advanced == [sum((counts or {"a": PROMPT}).values())]


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({"max_num_scheduled_tokens": PROMPT}, 0),
        ({"max_num_scheduled_tokens": PROMPT + 7}, 7),
        ({"max_model_len": PROMPT + 6}, 5),  # one is the challenger's own
        ({"max_model_len": PROMPT + 1}, 0),
        ({"share": 4}, 4),
        ({"blocks": Blocks(3)}, 0),  # the KV cache is full
    ],
)
def test_room_is_never_overdrawn(more: dict[str, Any], most: int) -> None:
    scheduler, output = scheduled(request("a"), **more)
    assert len(output.scheduled_spec_decode_tokens.get("a", ())) == most
    assert scheduler.advanced == [PROMPT + most]


def test_prompts_of_one_step_share_its_room() -> None:
    _, output = scheduled(*(request(name) for name in "abc"), max_num_scheduled_tokens=3 * PROMPT + 30)
    assert {name: len(tokens) for name, tokens in output.scheduled_spec_decode_tokens.items()} == dict.fromkeys(
        "abc", 10
    )


@pytest.mark.parametrize("more", [{"use_pp": True}, {"connector": object()}])
def test_where_blocks_are_read_earlier_nothing_is_changed(more: dict[str, Any]) -> None:
    assert scheduled(request("a"), **more)[1].scheduled_spec_decode_tokens == {}
