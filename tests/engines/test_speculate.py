"""The draft on its way: which engines get one, which requests bring one, and what the proposer makes of it."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from understudy.config import ModelSpec, ShadowSpec
from understudy.engines import placements, speculate
from understudy.engines.draft import Draft
from understudy.engines.placements import engine_args, wants_speculation
from understudy.engines.speculate import EXTRA_ARG, NUM_DRAFT_TOKENS, DraftProposer
from understudy.engines.step_cost import StepCost
from understudy.types import DraftCounts

ANSWER = list(range(100, 200))


def parameters(**more: Any) -> Any:
    plain = {"temperature": 0.0, "min_p": 0.0, "logit_bias": None, "seed": None, "extra_args": None, "max_tokens": 64}
    return SimpleNamespace(**(plain | more))


@pytest.mark.parametrize(
    ("speculative", "generate", "gpu", "expected"),
    [
        ("auto", True, False, True),
        ("auto", True, True, False),
        ("always", True, True, True),
        ("never", True, False, False),
        ("always", False, False, False),
    ],
)
def test_who_speculates(
    speculative: Any, generate: bool, gpu: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placements, "gpu_present", lambda: gpu)
    assert wants_speculation(ShadowSpec(speculative=speculative, generate=generate)) is expected


def test_a_challengers_engine_gets_the_proposer_and_the_champions_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "gpu_present", lambda: False)
    spec = ModelSpec("m", "m")
    challenger = engine_args(spec, champion=False, shared=True, speculative=True)
    assert challenger["speculative_config"]["model"] == speculate.PROPOSER
    assert speculate.speculates(challenger)
    assert not speculate.speculates(engine_args(spec, champion=False, shared=True))
    champion = engine_args(spec, champion=True, shared=True, speculative=True)
    assert "speculative_config" not in champion


@pytest.mark.parametrize(
    "own",
    [
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
        {"async_scheduling": True},
        {"logits_processors": ["mine:Processor"]},
    ],
)
def test_the_users_own_arguments_rule_it_out(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "gpu_present", lambda: False)
    made = engine_args(ModelSpec("m", "m", engine_args=own), champion=False, shared=True, speculative=True)
    assert made.items() >= own.items()
    assert not speculate.speculates(made)
    assert speculate.without_speculation(made) == made


@pytest.mark.parametrize(
    ("own", "draft_tokens", "sizes"),
    [
        ({}, 31, (64, 2048)),
        ({"max_num_seqs": 16, "max_num_batched_tokens": 512}, 31, (16, 512)),
        ({"max_num_seqs": 16, "max_num_batched_tokens": 256}, 15, (16, 256)),
        ({"max_num_seqs": 256}, 7, (256, 2048)),
        ({"max_num_batched_tokens": 640}, 9, (64, 640)),
        ({"max_num_seqs": 16, "max_num_batched_tokens": 16}, 0, None),
    ],
)
def test_with_lora_a_step_has_room_for_every_draft(
    own: dict[str, int], draft_tokens: int, sizes: tuple[int, int] | None
) -> None:
    """vLLM refuses to start otherwise."""
    made = speculate.speculative_args({"enable_lora": True} | own)
    if sizes is None:
        assert made == {}
    else:
        assert made["speculative_config"]["num_speculative_tokens"] == draft_tokens
        assert (made["max_num_seqs"], made["max_num_batched_tokens"]) == sizes
        assert sizes[0] * (draft_tokens + 1) <= sizes[1]


def test_the_api_process_knows_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "gpu_present", lambda: False)
    with_it = engine_args(ModelSpec("m", "m"), champion=False, shared=True, speculative=True)
    without = engine_args(ModelSpec("m", "m"), champion=False, shared=True)
    assert speculate.without_speculation(with_it) == without


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, None),
        ({"seed": 3}, None),  # greedy: nothing is drawn
        ({"min_p": 0.1}, None),
        ({"temperature": 0.7}, None),
        ({"temperature": 0.7, "seed": 3}, "seed"),
        ({"temperature": 0.7, "min_p": 0.1}, "min_p"),
        ({"logit_bias": {3: 1.0}}, "logit_bias"),
    ],
)
def test_what_vllm_does_not_verify_as_it_generates_is_generated_plainly(asked: dict[str, Any], why: str | None) -> None:
    assert speculate.plain_because(parameters(**asked)) == why
    made = speculate.with_draft(parameters(**asked), [ANSWER])
    assert (made.extra_args is None) is (why is not None)


def test_a_clients_own_arguments_stay_and_cannot_pass_for_a_draft() -> None:
    made = speculate.with_draft(parameters(extra_args={"mine": 1, EXTRA_ARG: "garbage"}), [ANSWER])
    assert made.extra_args == {"mine": 1, EXTRA_ARG: [ANSWER]}
    assert speculate.with_draft(parameters(extra_args={EXTRA_ARG: "garbage"}), ()).extra_args is None


# The proposer, on vLLM's names for a runner's state


def proposer(runner: Any | None = None, step_tokens: int = 512, vocabulary: int = 1000) -> DraftProposer:
    made = DraftProposer(
        SimpleNamespace(
            speculative_config=SimpleNamespace(num_speculative_tokens=NUM_DRAFT_TOKENS),
            model_config=SimpleNamespace(get_vocab_size=lambda: vocabulary),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=step_tokens),
        )
    )
    made._runner = runner
    return made


class Request:
    def __init__(self, name: str, said: list[int], drafts: Any = None, max_tokens: int | None = None) -> None:
        self.req_id, self.output_token_ids = name, said
        extra_args = None if drafts is None else {EXTRA_ARG: drafts}
        self.sampling_params = parameters(extra_args=extra_args, max_tokens=max_tokens)


def runner(*requests: Request) -> Any:
    by_name = {request.req_id: request for request in requests}
    return SimpleNamespace(requests=by_name, input_batch=SimpleNamespace(req_ids=list(by_name)))


def test_each_row_gets_the_rest_of_its_own_champions_answer() -> None:
    a, b = Request("a", ANSWER[:1], [ANSWER]), Request("b", [500], [list(range(500, 600))])
    proposed = proposer(runner(a, b)).propose([[100], [500]])
    assert [each[:2] for each in proposed] == [[101, 102], [501, 502]]
    a.output_token_ids += [101, 102, 103]
    assert proposer(runner(b, a)).propose([[], [101, 102, 103]])[1][0] == 104  # the rows have changed places
    assert getattr(a, EXTRA_ARG).num_fed == 4


def test_rows_that_read_their_prompt_or_brought_nothing_get_nothing() -> None:
    reading, plain = Request("a", [], [ANSWER]), Request("b", [100])
    assert proposer(runner(reading, plain)).propose([[], [100]]) == [[], []]
    assert proposer().propose([[1], [2]]) == [[], []]  # vLLM's own warm-up, before attach()


def test_each_of_n_answers_has_the_draft_of_the_champions_own() -> None:
    drafts = [[1, 10, 11], [1, 20, 21]]
    children = [Request(f"{index}_x_7", [1], drafts) for index in range(3)]
    proposed = proposer(runner(*children)).propose([[1]] * 3)
    assert proposed == [[10, 11], [20, 21], [20, 21]]
    assert proposer(runner(Request("shadow_3_x", [1], [[1, 10, 11]]))).propose([[1]]) == [[10, 11]]
    assert proposer(runner(Request("shadow_3_x", [1], drafts))).propose([[1]]) == [[10, 11]]  # no number: no error


@pytest.mark.parametrize(("max_tokens", "expected"), [(1, 0), (2, 0), (3, 1), (10, 8)])
def test_nothing_is_proposed_beyond_the_last_token(max_tokens: int, expected: int) -> None:
    asked = Request("a", ANSWER[:1], [ANSWER], max_tokens)
    assert len(proposer(runner(asked)).propose([[100]])[0]) == expected


@pytest.mark.parametrize("num_rows", [1, 2, 16, 100, 600])
@pytest.mark.parametrize(("step_tokens", "vocabulary"), [(512, 1000), (64, 1000), (8192, 200_000)])
def test_a_step_stays_within_its_tokens_and_its_memory(num_rows: int, step_tokens: int, vocabulary: int) -> None:
    rows = [Request(str(index), ANSWER[:1], [ANSWER]) for index in range(num_rows)]
    proposed = proposer(runner(*rows), step_tokens, vocabulary).propose([[100]] * num_rows)
    total = sum(map(len, proposed))
    assert max(map(len, proposed)) <= NUM_DRAFT_TOKENS
    assert total == 0 or total + num_rows <= step_tokens
    assert total * vocabulary * 3 * 4 <= speculate.LOGITS_BYTES


def test_what_is_known_of_a_draft_is_gone_with_its_request() -> None:
    request = Request("a", ANSWER[:1], [ANSWER])
    made = proposer(runner(request))
    made.propose([[100]])
    draft = weakref.ref(getattr(request, EXTRA_ARG))
    assert isinstance(draft(), Draft)
    del made._runner.requests["a"], request  # as vLLM does when it ended or was aborted
    gc.collect()
    assert draft() is None


def test_what_became_of_a_draft() -> None:
    metrics = SimpleNamespace(num_draft_tokens=12, histogram=[1, 0, 0, 2])  # accepted: once 0, twice 3
    output = SimpleNamespace(token_ids=[*ANSWER[:5], 7, *ANSWER[6:9]], spec_decode_metrics=metrics)
    brought = speculate.with_draft(parameters(), [ANSWER])
    assert speculate.counts([output], brought) == DraftCounts(proposed=12, accepted=6, lost=1, realigned=1)
    assert speculate.counts([output], parameters()) is None


# What a step costs, and steps without drafts


def watched(*requests: Request) -> tuple[DraftProposer, list[tuple[int, int, float]], Any]:
    """A proposer, what it learned of steps, and its runner."""
    made, seen = proposer(runner(*requests)), []
    made.cost = SimpleNamespace(saw=lambda *each: seen.append(each), price=StepCost().price)  # type: ignore[assignment]
    times = iter(range(100))
    made._clock = lambda: float(next(times))
    return made, seen, made._runner


def step(rows: dict[str, int], drafted: dict[str, list[int]]) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=rows, total_num_scheduled_tokens=sum(rows.values()), scheduled_spec_decode_tokens=drafted
    )


def test_steps_are_timed_without_what_the_champion_had_of_them() -> None:
    made, seen, lent = watched(Request("a", ANSWER[:1], [ANSWER]), Request("b", [100]))
    made._begins(step({"a": 4, "b": 1}, {"a": [101, 102, 103]}))
    lent.understudy_lent_s = 0.25
    made.propose([[100], [100]])
    made._begins(step({"a": 1, "b": 1}, {}))
    made.propose([[100], [100]])
    assert seen == [(2, 3, 0.75), (2, 0, 1.0)]


def test_steps_of_prompts_are_not_watched_and_no_step_twice() -> None:
    made, seen, _ = watched(Request("a", ANSWER[:1], [ANSWER]))
    made._begins(step({"a": 9}, {}))
    made.propose([[100]])
    made.propose([[100]])
    made._begins(step({}, {}))
    made.propose([[100]])
    assert seen == []


@pytest.mark.parametrize(
    ("hybrid", "drafted", "plain"), [(False, {}, True), (False, {"a": [1]}, False), (True, {}, False)]
)
def test_a_step_without_drafts_is_prepared_as_if_nothing_speculated(hybrid: bool, drafted: Any, plain: bool) -> None:
    asked = []
    made = SimpleNamespace(model_config=SimpleNamespace(is_hybrid=hybrid), speculative_config="ours")

    def prepare(_scheduled: Any, _counts: Any) -> str:
        asked.append(made.speculative_config)
        if len(asked) > 1:
            raise RuntimeError("broken")
        return "inputs"

    made._prepare_inputs = prepare
    speculate.step_plainly_without_drafts(made)
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens=drafted)
    assert made._prepare_inputs(scheduled, None) == "inputs"
    with pytest.raises(RuntimeError, match="broken"):
        made._prepare_inputs(scheduled, None)
    assert asked == [None if plain else "ours"] * 2
    assert made.speculative_config == "ours"


def test_a_draft_is_not_copied_token_by_token_on_its_way() -> None:
    from vllm import SamplingParams

    brought = speculate.with_draft(SamplingParams(temperature=0.0), [ANSWER])
    assert brought.clone().extra_args is brought.extra_args
