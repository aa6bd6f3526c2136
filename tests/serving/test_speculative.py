"""Speculative shadow on real engines: what a challenger says with a draft is what it says without, whatever is asked.

All engines are in this process, in float32: there a row's logits do not depend on what else is in its batch closely
enough to turn a greedy choice. See test_in_bfloat16_... for what happens otherwise.
"""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.serving.models import SIZES, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from understudy.engines import placements, seeds, speculate
from understudy.engines.draft import MARGIN, Draft, Habits
from understudy.engines.step_cost import Price

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_EXCHANGES = 1000  # for each of three champions
NUM_SEEDS = 20
NUM_SAMPLES = 300  # for each kind of parameters and each of the seeds
SMALL_VOCABULARY = 12


def save(folder: Path, seed: int, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | config)))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """challenger, near (the same with noise), far (another), lora (an adapter of challenger), tiny (12 tokens)."""
    folder = tmp_path_factory.mktemp("models")
    words = tokenizer("plain")
    names = ("challenger", "near", "far", "lora", "tiny")
    paths = {name: folder / name for name in names}
    near = save(paths["challenger"], 7, vocab_size=len(words))
    torch.manual_seed(9)
    adapter = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(paths["challenger"]), adapter).save_pretrained(paths["lora"])
    with torch.no_grad():
        for weight in near.parameters():
            weight.add_(torch.randn_like(weight) * 0.01 * weight.std())
    near.save_pretrained(paths["near"])
    save(paths["far"], 8, vocab_size=len(words))
    save(paths["tiny"], 5, vocab_size=SMALL_VOCABULARY, initializer_range=0.3)
    for name in ("challenger", "near", "far"):
        words.save_pretrained(paths[name])
    return paths


class Engines:
    """Engines of this process, made when first asked for."""

    def __init__(self, models: dict[str, Path]) -> None:
        self._models = models
        self._made: dict[Any, Any] = {}

    def get(self, name: str, *, speculative: bool = False, **more: Any) -> Any:
        from vllm import LLM

        key = (name, speculative, *more.items())
        if key not in self._made:
            arguments = {
                "model": str(self._models[name]),
                "dtype": "float32",
                "enforce_eager": True,
                "kv_cache_memory_bytes": 64 * 2**20,
                "max_num_seqs": 64,
                "max_num_batched_tokens": 1024,
                "max_model_len": 512,
                "disable_log_stats": True,
                "seed": 0,
            }
            if speculative:
                arguments |= speculate.speculative_args(arguments | more)
            llm = self._made[key] = LLM(**(arguments | more))
            seeds.install(core(llm))  # as every core has it: prompts are cut where drafts fill a step
            if speculative:
                speculate.attach(core(llm))
                llm.input_processor.speculative_config = None  # as for the API process: without_speculation()
        return self._made[key]

    def close(self) -> None:
        for llm in self._made.values():
            llm.llm_engine.engine_core.shutdown()


def core(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core


def runner(llm: Any) -> Any:
    return core(llm).model_executor.driver_worker.worker.model_runner


@pytest.fixture(autouse=True)
def always_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are proposed however bad they are: what is said must not depend on what was measured."""
    monkeypatch.setattr("understudy.engines.draft.MARGIN", 0.0)
    monkeypatch.setattr("understudy.engines.step_cost.StepCost.price", lambda *_: Price(1.0, 0.0, 1e-9))


@pytest.fixture(scope="module")
def engines(models: dict[str, Path]) -> Iterator[Engines]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in placements.environment(()).items():
            patch.setenv(name, value)
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # OpenMP read its environment long ago
        engines = Engines(models)
        yield engines
        engines.close()
        torch.set_num_threads(num_threads)


def sampling(**more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**({"temperature": 0.0, "max_tokens": 24} | more))


def prompts(number: int, seed: int = 3, vocabulary: int = 300) -> list[list[int]]:
    chance = random.Random(seed)
    return [[1, *(chance.randrange(8, vocabulary) for _ in range(chance.randint(3, 40)))] for _ in range(number)]


def generate(llm: Any, asked: Sequence[list[int]], parameters: Any, **more: Any) -> list[Any]:
    return llm.generate([{"prompt_token_ids": each} for each in asked], parameters, use_tqdm=False, **more)


def said(outputs: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def drafted(
    llm: Any, asked: Sequence[list[int]], drafts: Sequence[Sequence[int]], **more: Any
) -> tuple[list[Any], Any]:
    """What an engine says with drafts, and what became of them."""
    parameters = [speculate.with_draft(sampling(**more), [draft]) for draft in drafts]
    outputs = generate(llm, asked, parameters)
    counted = [speculate.counts(output.outputs, each) for output, each in zip(outputs, parameters, strict=True)]
    return outputs, [count for count in counted if count is not None]


def test_greedy_output_is_that_of_plain_generation_over_thousands_of_exchanges(engines: Engines) -> None:
    asked = prompts(NUM_EXCHANGES)
    plain, speculative = engines.get("challenger"), engines.get("challenger", speculative=True)
    expected = said(generate(plain, asked, sampling()))
    acceptance = {}
    for name in ("challenger", "near", "far"):
        champion = said(generate(engines.get(name), asked, sampling()))
        outputs, counts = drafted(speculative, asked, champion)
        assert said(outputs) == expected, name
        proposed, accepted = sum(count.proposed for count in counts), sum(count.accepted for count in counts)
        acceptance[name] = accepted / proposed
        if name == "near":  # it did meet mismatches, and found its way back
            assert accepted > 1000
            assert sum(count.realigned for count in counts) > 100
    assert acceptance["challenger"] == 1.0
    assert acceptance["challenger"] > acceptance["near"] > acceptance["far"]


def test_a_far_champion_costs_few_tokens_and_a_near_one_saves_most_steps(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(64, seed=4)
    llm = engines.get("challenger", speculative=True)
    monkeypatch.setattr("understudy.engines.draft.MARGIN", MARGIN)
    monkeypatch.setattr("understudy.engines.step_cost.StepCost.price", lambda _, rows: Price(1 + rows * 0.02))
    monkeypatch.setattr(runner(llm).drafter, "habits", Habits())
    own = said(generate(llm, asked, sampling(max_tokens=96, ignore_eos=True)))
    far = said(generate(engines.get("far"), asked, sampling(max_tokens=96, ignore_eos=True)))
    _, same = drafted(llm, asked, own, max_tokens=96, ignore_eos=True)
    assert sum(count.accepted for count in same) > 0.75 * 64 * 95
    _, wrong = drafted(llm, asked, far, max_tokens=96, ignore_eos=True)
    assert sum(count.proposed for count in wrong) < 0.5 * 64 * 96  # one long draft at first, then hardly any


QUESTIONS: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 1.2},
    "repetition": {"repetition_penalty": 1.3},
    "min_tokens": {"min_tokens": 20, "stop_token_ids": list(range(100, 180))},
    "stop_token_ids": {"stop_token_ids": list(range(100, 130))},
    "stop": {"stop": ["e", "th", "q"]},
    "stop_included": {"stop": ["a", "o"], "include_stop_str_in_output": True},
    "bad_words": {"bad_words": ["the", "fox", "e"]},
    "allowed": {"allowed_token_ids": list(range(8, 120))},
    "logit_bias": {"logit_bias": {40: 6.0, 41: -50.0}},
    "logprobs": {"logprobs": 3},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "regex": {"regex": r"[a-z]{3,9}( [a-z]{2,7}){4}"},
    "json": {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    "choice": {"choice": ["yes", "no", "perhaps"]},
    "seed": {"temperature": 0.9, "seed": 5},
    "seed_top": {"temperature": 1.2, "seed": 6, "top_p": 0.8, "top_k": 9},
    "min_p_seed": {"temperature": 1.0, "seed": 7, "min_p": 0.2},
    "logit_bias_seed": {"temperature": 1.0, "seed": 8, "logit_bias": {40: 4.0}},
    "penalties_seed": {"temperature": 0.8, "seed": 8, "repetition_penalty": 1.2},
    "n": {"temperature": 0.9, "seed": 9, "n": 3},
    "max_tokens": {"max_tokens": 1},
    "context_full": {"max_tokens": 511},
}


def question(name: str) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    asked = dict(QUESTIONS[name])
    for kind in ("regex", "json", "choice"):
        if kind in asked:
            asked["structured_outputs"] = StructuredOutputsParams(**{kind: asked.pop(kind)})
    return sampling(**asked)


def near(row: Any) -> Any:
    return {token: (pytest.approx(each.logprob, abs=1e-4), each.rank) for token, each in row.items()}


def everything(output: Any) -> Any:
    """What was said, how it ended, and the log-probabilities as far as arithmetic lets them be equal."""
    return [
        (
            tuple(each.token_ids),
            each.text,
            each.finish_reason,
            each.stop_reason,
            each.logprobs and [near(row) for row in each.logprobs],
        )
        for each in output.outputs
    ]


@pytest.mark.parametrize("says", ["challenger", "near", "far", "anything"])
@pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated")  # vLLM's call of xgrammar
def test_every_parameter_gives_what_it_gives_without_a_draft_alone_and_in_one_batch(
    engines: Engines, says: str
) -> None:
    """With perfect drafts, near and far ones, and ones that keep to no parameter: bad words, against the grammar."""
    plain, speculative = engines.get("challenger"), engines.get("challenger", speculative=True)
    names = [name for name in QUESTIONS for _ in range(4)]
    asked = prompts(len(names), seed=5)
    expected = generate(plain, asked, [question(name) for name in names])
    if says == "anything":
        champion = generate(engines.get("far"), asked, sampling(ignore_eos=True))
    else:
        champion = generate(engines.get(says), asked, [question(name) for name in names])
    parameters = [
        speculate.with_draft(question(name), [each.token_ids for each in output.outputs])
        for name, output in zip(names, champion, strict=True)
    ]
    together = generate(speculative, asked, parameters)
    wrong = {n for n, a, b in zip(names, expected, together, strict=True) if everything(a) != everything(b)}
    assert not wrong
    alone = [generate(speculative, [each], with_it)[0] for each, with_it in zip(asked, parameters, strict=True)]
    wrong = {n for n, a, b in zip(names, expected, alone, strict=True) if everything(a) != everything(b)}
    assert not wrong
    with_drafts = {n for n, each in zip(names, parameters, strict=True) if each.extra_args}
    assert {n for n in names if "seed" in QUESTIONS[n] or "logit_bias" in QUESTIONS[n]} == set(names) - with_drafts


def test_each_of_several_answers_has_its_own_draft(engines: Engines) -> None:
    """Unseeded, at vLLM's lowest temperature: nearly the likeliest answers. Of three drafts one is right, in turn."""
    asked = prompts(24, seed=6)
    greedy = sampling(ignore_eos=True)
    right = said(generate(engines.get("challenger"), asked, greedy))
    wrong = tuple(reversed(range(100, 124)))
    parameters = [
        speculate.with_draft(
            sampling(n=3, temperature=0.01, ignore_eos=True),
            [right[number] if index == number % 3 else wrong for index in range(3)],
        )
        for number in range(len(asked))
    ]
    outputs = generate(engines.get("challenger", speculative=True), asked, parameters)
    accepted = {True: 0, False: 0}
    for number, output in enumerate(outputs):
        assert [len(each.token_ids) for each in output.outputs] == [24] * 3
        for each in output.outputs:
            histogram = each.spec_decode_metrics.histogram
            accepted[each.index == number % 3] += sum(length * steps for length, steps in enumerate(histogram))
    most = 24 * 23  # tokens of one answer of each prompt, but for the last, which the step says by itself
    assert accepted[True] > 0.5 * most, accepted
    assert accepted[False] < 0.05 * 2 * most, accepted


# Sampled output

SAMPLED: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.4, "top_p": 0.8},
    {"temperature": 1.0},
    {"temperature": 1.0},
)
PLAIN, SEEDED = 3, 4  # of these: without drafts beside the others, and each with a seed of its own
START = [1, 5, 9, 3]
LENGTH = 4


def exact(model: Path, temperature: float, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """The probability of each sequence of LENGTH tokens after START, by transformers: [SMALL_VOCABULARY] * LENGTH."""
    oracle = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prefixes = torch.tensor([START])
    joint = torch.ones(1)
    for _ in range(LENGTH):
        with torch.no_grad():
            logits = oracle(prefixes).logits[:, -1] / temperature
        if top_k:
            logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
        ascending, order = logits.softmax(-1).sort(-1)
        kept = ascending.cumsum(-1) > 1 - top_p
        kept[:, -1] = True
        probability = torch.zeros_like(logits).scatter(1, order, ascending * kept)
        joint = (joint[:, None] * probability / probability.sum(-1, keepdim=True)).flatten()
        tokens = torch.arange(SMALL_VOCABULARY).repeat(len(prefixes))
        prefixes = torch.cat([prefixes.repeat_interleave(SMALL_VOCABULARY, 0), tokens[:, None]], dim=1)
    return joint.double().reshape([SMALL_VOCABULARY] * LENGTH)


FALSE_ALARM = 1e-9
"""Of one comparison. There are 45, so that all together are wrong once in 2 * 10^7 times, or, as the distribution is
only about chi-square in its tail, in some 10^6 times."""


def chi_square(observed: torch.Tensor, expected: torch.Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom; cells with fewer than 5 expected are one cell."""
    common = expected >= 5
    seen = torch.cat([observed[common], observed[~common].sum()[None]])
    due = torch.cat([expected[common], expected[~common].sum()[None]])
    assert not seen[due == 0].any(), "a token that cannot be said was said"
    seen, due = seen[due > 0], due[due > 0]
    return float(((seen - due) ** 2 / due).sum()), len(due) - 1


def tails(statistic: float, degrees: int) -> tuple[float, float]:
    """The probabilities of one so small and of one so large."""
    half, quarter = torch.tensor(degrees / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)
    return float(torch.special.gammainc(half, quarter)), float(torch.special.gammaincc(half, quarter))


def test_sampled_output_has_the_challengers_exact_distribution_over_many_seeds(
    engines: Engines, models: dict[str, Path]
) -> None:
    """Drafts good and bad, rows of all temperatures in one batch, against the softmax of transformers' logits.

    The engine's generator is set to another seed for each round, and the seeded requests have one seed each. Over all
    rounds together the counts must be those of the distribution; and the rounds must differ from it as much as chance
    makes them, not more (draws that hang together within a round) and not less.
    """
    llm = engines.get("tiny", speculative=True, skip_tokenizer_init=True, seed=11)
    chance = random.Random(1)
    kinds = [kind for _ in range(NUM_SAMPLES) for kind in range(len(SAMPLED))]
    truth = [exact(models["tiny"], **each) for each in SAMPLED]
    likely = [int(index) for index in torch.unravel_index(truth[0].argmax(), truth[0].shape)]
    rounds, accepted, proposed, num_drafts = [], 0, 0, 0
    for seed in range(NUM_SEEDS):
        parameters = []
        for index, kind in enumerate(kinds):
            own = {"seed": seed * len(kinds) + index} if kind == SEEDED else {}
            asked = sampling(max_tokens=LENGTH, ignore_eos=True, detokenize=False, **SAMPLED[kind], **own)
            answer = likely if chance.random() < 0.5 else [chance.randrange(12) for _ in likely]
            parameters.append(speculate.with_draft(asked, [] if kind == PLAIN else [answer]))
        torch.manual_seed(1000 + seed)
        outputs = generate(llm, [START] * len(parameters), parameters)
        for output, each in zip(outputs, parameters, strict=True):
            count = speculate.counts(output.outputs, each)
            if count is not None:
                accepted, proposed, num_drafts = accepted + count.accepted, proposed + count.proposed, num_drafts + 1
        rounds.append(torch.tensor(said(outputs)))
    assert 0.05 * proposed < accepted < 0.95 * proposed
    assert proposed > num_drafts == 3 * NUM_SAMPLES * NUM_SEEDS
    for kind, each in enumerate(SAMPLED):
        places = [index for index, other in enumerate(kinds) if other == kind]
        for first in range(LENGTH - 1):  # pairs of neighbours: drafted with the prompt, later, and behind a draft
            others = [axis for axis in range(LENGTH) if axis not in (first, first + 1)]
            due = truth[kind].sum(dim=others).flatten() * len(places)
            pairs = [mine[places, first] * SMALL_VOCABULARY + mine[places, first + 1] for mine in rounds]
            seen = [torch.bincount(pair, minlength=len(due)).double() for pair in pairs]
            _, too_large = tails(*chi_square(torch.stack(seen).sum(0), due * NUM_SEEDS))
            assert too_large > FALSE_ALARM, (each, first, "over all seeds")
            apart = [chi_square(some, due) for some in seen]
            too_small, too_large = tails(sum(one for one, _ in apart), sum(degrees for _, degrees in apart))
            assert min(too_small, too_large) > FALSE_ALARM, (each, first, "from seed to seed")


# What else an engine does


def test_a_prompt_that_is_cached_in_full_is_not_padded(engines: Engines) -> None:
    """vLLM would fill such a row up with placeholders, where another row is running."""
    plain, llm = engines.get("challenger"), engines.get("challenger", speculative=True)
    block = core(llm).vllm_config.cache_config.block_size
    asked = [each[:1] + each[1:] * (block // 3) for each in prompts(8, seed=6)]
    asked = [each[: block + 1] for each in asked]
    expected = said(generate(plain, asked, sampling()))
    generate(llm, asked, sampling(max_tokens=1))  # now all but the last token of each is cached
    scheduled: list[Any] = []
    schedule = core(llm).scheduler.schedule

    def watched(*args: Any) -> Any:
        scheduled.append(schedule(*args))
        return scheduled[-1]

    core(llm).scheduler.schedule = watched
    try:
        outputs, _ = drafted(llm, asked, expected)
    finally:
        core(llm).scheduler.schedule = schedule
    assert said(outputs) == expected
    first = scheduled[0]
    num_drafted = sum(map(len, first.scheduled_spec_decode_tokens.values()))
    assert first.total_num_scheduled_tokens - num_drafted == len(asked), "the prompts were not cached"
    assert not any(-1 in tokens for each in scheduled for tokens in each.scheduled_spec_decode_tokens.values())


@pytest.mark.parametrize("max_tokens", [1, 7, 40])
def test_steps_stay_as_small_as_the_driver_makes_them(engines: Engines, max_tokens: int) -> None:
    """The driver sets the scheduler's limit before each step; drafts have to fit in."""
    plain, llm = engines.get("challenger"), engines.get("challenger", speculative=True)
    asked = prompts(12, seed=7)
    expected = said(generate(plain, asked, sampling()))
    scheduler = core(llm).scheduler
    schedule, usual, sizes = scheduler.schedule, scheduler.max_num_scheduled_tokens, []

    def watched(*args: Any) -> Any:
        output = schedule(*args)
        sizes.append(output.total_num_scheduled_tokens)
        return output

    scheduler.schedule, scheduler.max_num_scheduled_tokens = watched, max_tokens
    try:
        outputs, _ = drafted(llm, asked, expected)
    finally:
        scheduler.schedule, scheduler.max_num_scheduled_tokens = schedule, usual
    assert said(outputs) == expected
    assert max(sizes) <= max_tokens


def test_a_draft_is_gone_when_its_request_has_ended_or_was_aborted(engines: Engines) -> None:
    llm = engines.get("challenger", speculative=True)
    engine, drafts = llm.llm_engine, []
    for index, asked in enumerate(prompts(4, seed=8)):
        parameters = speculate.with_draft(sampling(max_tokens=200, ignore_eos=True), [list(range(20, 200))])
        engine.add_request(f"leak-{index}", {"prompt_token_ids": asked}, parameters)
    for _ in range(3):
        engine.step()
    for request in runner(llm).requests.values():
        drafts.append(weakref.ref(getattr(request, speculate.EXTRA_ARG)))
    assert len(drafts) == 4
    assert all(each() is not None for each in drafts)
    del request
    engine.abort_request([f"leak-{index}" for index in range(2)])
    while engine.has_unfinished_requests():
        engine.step()
    generate(llm, prompts(1), sampling(max_tokens=2))  # vLLM lets go of the ended ones in its next step
    gc.collect()
    assert not any(isinstance(each(), Draft) for each in drafts)
    assert not runner(llm).requests.keys() & {f"leak-{index}" for index in range(4)}


def test_a_lora_challenger_speculates_too(engines: Engines, models: dict[str, Path]) -> None:
    from vllm.lora.request import LoRARequest

    adapter = LoRARequest("tuned", 1, str(models["lora"]))
    more: dict[str, Any] = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}
    asked = prompts(40, seed=9)
    base = said(generate(engines.get("challenger"), asked, sampling()))
    expected = said(generate(engines.get("challenger", **more), asked, sampling(), lora_request=adapter))
    assert expected != base
    for draft in (expected, base):
        parameters = [speculate.with_draft(sampling(), [each]) for each in draft]
        outputs = generate(engines.get("challenger", speculative=True, **more), asked, parameters, lora_request=adapter)
        assert said(outputs) == expected


def test_in_bfloat16_a_choice_is_turned_only_where_two_tokens_are_as_good_as_equal(engines: Engines) -> None:
    """A row's logits depend, in their last bits, on how many rows are multiplied at a time; plain generation's too."""
    asked = prompts(300, seed=10)
    more = {"dtype": "bfloat16"}
    plain, llm = engines.get("challenger", **more), engines.get("challenger", speculative=True, **more)
    reference = generate(plain, asked, sampling(logprobs=2))
    by_itself = [generate(plain, [each], sampling())[0] for each in asked]
    with_drafts, _ = drafted(llm, asked, said(reference))
    for outputs in (by_itself, with_drafts):
        for output, plainly in zip(outputs, reference, strict=True):
            mine, theirs = output.outputs[0].token_ids, plainly.outputs[0].token_ids
            turned = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
            if turned is not None:
                row = plainly.outputs[0].logprobs[turned]
                assert mine[turned] in row
                assert abs(row[mine[turned]].logprob - row[theirs[turned]].logprob) < 0.25  # bfloat16 has 8 bits


def test_numba_is_not_needed(engines: Engines) -> None:
    """vLLM's own proposers of n-grams bring it, with its threads; ours does not."""
    engines.get("challenger", speculative=True)
    assert "numba" not in sys.modules
