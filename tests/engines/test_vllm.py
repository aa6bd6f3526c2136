"""Our side of vLLM's types: what cores share, the fork's witness, the challenger's parameters. No engine is started."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.builders import in_loop

from understudy.api.context import RequestContext, current
from understudy.types import Outcome, RequestFacts

pytestmark = pytest.mark.slow  # importing vllm takes seconds


# What a process has only once


def test_unseeded_sampling_of_the_champion_is_not_moved_by_challengers() -> None:
    """Law 1: the very same random numbers, with a challenger's drawn in between and without."""
    import random

    import numpy
    import torch

    from understudy.engines.core import ProcessState

    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), numpy.random.rand(), random.random()

    def new(seed: int) -> ProcessState:
        state = ProcessState()
        state.keep()
        state.restore()
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        random.seed(seed)
        state.keep()
        return state

    alone = new(7)
    alone.restore()
    expected = [draw() for _ in range(3)]
    champion, challenger = new(7), new(8)
    drawn = []
    for _ in range(3):
        champion.restore()
        drawn.append(draw())
        champion.keep()
        challenger.restore()
        assert draw() != drawn[-1]
        challenger.keep()
    assert drawn == expected


def test_each_core_keeps_its_own_workspace() -> None:
    from vllm.v1.worker import workspace

    from understudy.engines.core import ProcessState

    before = workspace._manager
    try:
        states = [ProcessState(), ProcessState()]
        for number, state in enumerate(states):
            workspace._manager = number
            state.keep()
        for number, state in enumerate(states):
            state.restore()
            assert workspace._manager == number
    finally:
        workspace._manager = before


def test_each_core_keeps_the_scratch_memory_of_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams would write to one buffer; the module of a backend comes with the first core that uses it."""
    from understudy.engines import core

    (name, attribute), *_ = core.SCRATCH
    monkeypatch.delitem(sys.modules, name, raising=False)
    module: Any = ModuleType(name)
    setattr(module, attribute, None)
    first, second = core.ProcessState(), core.ProcessState()
    first.keep()
    monkeypatch.setitem(sys.modules, name, module)
    first.restore()
    setattr(module, attribute, "the first's")
    first.keep()
    setattr(module, attribute, None)
    second.keep()
    first.restore()
    assert getattr(module, attribute) == "the first's"
    second.restore()
    assert getattr(module, attribute) is None


def test_a_core_that_cannot_cut_prompts_has_no_limit() -> None:
    """vLLM would never schedule a prompt that is longer than the limit of a step."""
    from understudy.engines.host import step_limit

    def core(cuts: bool) -> Any:
        return SimpleNamespace(max_tokens=2048, cuts_prompts=cuts)

    whole, cut = step_limit(core(False), 0.010), step_limit(core(True), 0.010)
    for limit in (whole, cut):
        for _ in range(20):
            limit.saw(limit.tokens, 5.0)
    assert whole.tokens == 2048 > cut.tokens


@pytest.mark.parametrize(
    ("module", "name"),
    [("v1/attention/backends/flashinfer", "trtllm_workspace_buffer"),
     ("v1/attention/backends/mla/flashinfer_mla", "_fi_workspace"),
     ("v1/attention/backends/mla/flashinfer_mla", "_fi_multi_ctas_kv_counter"),
     ("v1/attention/backends/mla/flashinfer_mla_sparse", "_fi_sparse_workspace")],
)  # fmt: skip
def test_that_scratch_memory_is_where_vllm_has_it(module: str, name: str) -> None:
    """Read and not imported: the backends need a GPU."""
    import vllm

    from understudy.engines.core import SCRATCH

    assert (f"vllm.{module.replace('/', '.')}", name) in SCRATCH
    assert f"\n    global {name}\n" in (Path(vllm.__file__).parent / f"{module}.py").read_text()


class Event:
    def __init__(self, done: bool) -> None:
        self.query = lambda: done


@pytest.mark.parametrize("name", ["async_copy_ready_event", "copy_event"])
@pytest.mark.parametrize("done", [True, False])
def test_a_launched_step_is_asked_about_and_not_waited_for(name: str, done: bool) -> None:
    from concurrent.futures import Future
    from types import SimpleNamespace

    from understudy.engines.core import is_done

    launched: Any = Future()
    launched.async_output = SimpleNamespace(**{name: Event(done)})
    assert is_done(launched) is done
    plain: Any = Future()
    plain.set_result(1)
    assert is_done(plain)


# The challenger's parameters


def test_the_challengers_parameters_share_nothing_with_the_champions() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from understudy.engines.vllm_engine import own_copy

    champion = SamplingParams(
        temperature=0.3, stop_token_ids=[5], seed=9, structured_outputs=StructuredOutputsParams(regex="a+")
    )
    champion.skip_clone = True  # as vLLM's server marks them
    champion._all_stop_token_ids.add(128_001)  # as the champion's engine does with its own end token
    assert champion.structured_outputs is not None
    champion.structured_outputs._backend = "xgrammar"
    mine = own_copy(champion)
    assert mine._all_stop_token_ids == {5}
    assert mine.structured_outputs is not None
    assert mine.structured_outputs._backend is None
    assert (mine.seed, mine.temperature, mine.structured_outputs.regex) == (9, 0.3, "a+")
    mine.clone()._all_stop_token_ids.add(7)
    assert champion._all_stop_token_ids == {5, 128_001}
    assert champion.structured_outputs._backend == "xgrammar"


@in_loop
async def test_what_a_challenger_rejects_is_unsupported_and_no_fault() -> None:
    from vllm.exceptions import VLLMValidationError

    from understudy.engines.vllm_engine import translated
    from understudy.errors import Unsupported

    with pytest.raises(Unsupported) as caught:
        async with translated("rival"):
            raise VLLMValidationError("too many logprobs")
    assert caught.value.reason == "rejected"


# The fork


@pytest.mark.parametrize(
    ("asked", "endpoint", "seen"),
    [
        ("chatcmpl-abc", "/v1/chat/completions", "chatcmpl-abc"),
        ("chatcmpl-user_42", "/v1/chat/completions", "chatcmpl-user_42"),
        ("chatcmpl-abc_1", "/v1/chat/completions/batch", "chatcmpl-abc"),
        ("cmpl-087249b6-1366-0", "/v1/completions", "cmpl-087249b6-1366"),
        ("resp_98490a_0", "/v1/responses", "resp_98490a"),
        ("generative-scoring-x-3", "/generative_scoring", "generative-scoring-x"),
    ],
)
def test_the_response_id_is_what_the_client_sees(asked: str, endpoint: str, seen: str) -> None:
    from understudy.fork import response_id

    assert response_id(asked, endpoint) == seen


class Champion:
    """Yields what it is given."""

    def __init__(self, *outputs: Any, fault: Exception | None = None) -> None:
        self.outputs, self.fault = outputs, fault
        self.closed = False

    async def generate(self, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        try:
            for output in self.outputs:
                yield output
            if self.fault is not None:
                raise self.fault
        finally:
            self.closed = True


def output(*completions: Any, finished: bool = False) -> Any:
    from vllm.outputs import CompletionOutput, RequestOutput

    made = [CompletionOutput(index, text, ids, None, None, finish_reason=why) for index, text, ids, why in completions]
    return RequestOutput("r", "a prompt", [1, 2, 3], None, made, finished)


def test_what_waits_to_be_taken_in_knows_its_size() -> None:
    from vllm import SamplingParams

    from understudy.fork import ChampionWitness

    def size_bytes(*outputs: Any, body: bytes = b"") -> int:
        context = RequestContext(RequestFacts(), body=[body, body])
        witness = ChampionWitness("champ", "r", SamplingParams(), context)
        for each in outputs:
            witness.see(each)
        witness.close(Outcome.FINISHED)
        return witness.held_bytes

    small = size_bytes(output((0, "a", [7], "stop"), finished=True))
    assert 0 < size_bytes() < small < 4096
    assert size_bytes(body=bytes(50_000)) > 100_000
    assert size_bytes(output((0, "a", list(range(5_000)), "stop"), finished=True)) > 100_000
    assert size_bytes(*[output((0, "a", [7], None)) for _ in range(500)]) > 100_000


def test_only_logprobs_of_the_models_own_distribution_are_taken_for_such() -> None:
    from vllm import SamplingParams
    from vllm.logprobs import Logprob

    from understudy.config import ModelSpec
    from understudy.fork import ChampionWitness

    for mode, taken in ((None, (-0.5,)), ("raw_logprobs", (-0.5,)), ("processed_logprobs", None), ("raw_logits", None)):
        says = ModelSpec("m", engine_args={} if mode is None else {"logprobs_mode": mode}).says_logprobs
        witness = ChampionWitness("champ", "r", SamplingParams(), None, None, says)
        seen = output((0, "a", [7], "stop"), finished=True)
        seen.outputs[0].logprobs = [{7: Logprob(-0.5, 1)}]
        witness.see(seen)
        witness.close(Outcome.FINISHED)
        (mine,) = witness.complete().champion.answers
        assert mine.logprobs == taken


def test_on_vllms_own_path_two_tokens_that_tie_for_first_are_no_error() -> None:
    """vLLM counts as ranks the tokens that are at least as likely: of two equal ones both have rank 2."""
    from types import SimpleNamespace

    from vllm.logprobs import Logprob

    from understudy.engines.scoring import unpack_vllm

    rows = [None, {5: Logprob(-1.5, 3), 8: Logprob(-0.7, 2), 9: Logprob(-0.7, 2)}, {6: Logprob(-0.1, 1)}]
    score = unpack_vllm(SimpleNamespace(prompt_logprobs=rows), [1], [5, 6])  # type: ignore[arg-type]
    assert (score.ranks, score.top1, score.logprobs) == ((3, 1), (8, 6), (-1.5, -0.1))


async def through(champion: Champion, params: Any, prompt: Any = None, leave_after: int = 99, **more: Any) -> Any:
    """What the fork yields and offers."""
    from understudy.fork import Fork

    current.set(None)
    offered: list[Any] = []
    fork = Fork(champion, "champion", offered.append)
    seen = []
    stream = fork.generate(prompt or {"type": "token"}, params, "chatcmpl-r", **more)
    async for each in stream:
        seen.append(each)
        if len(seen) == leave_after:
            break
    await stream.aclose()
    return seen, offered


@in_loop
async def test_deltas_of_several_answers_are_joined_and_passed_through_untouched() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    outputs = [
        output((0, "a", [10], None), (1, "x", [20, 21], None)),
        output((0, "b", [11], "stop")),
        output((1, "y", [22], "length"), finished=True),
    ]
    seen, offered = await through(Champion(*outputs), SamplingParams(n=2, output_kind=RequestOutputKind.DELTA))
    assert all(mine is theirs for mine, theirs in zip(seen, outputs, strict=True))
    exchange = offered[0].complete()
    assert [answer.token_ids for answer in exchange.champion.answers] == [(10, 11), (20, 21, 22)]
    assert [answer.text for answer in exchange.champion.answers] == ["ab", "xy"]
    assert [answer.finish_reason for answer in exchange.champion.answers] == ["stop", "length"]
    assert exchange.champion.outcome is Outcome.FINISHED
    assert exchange.champion.prompt_token_ids == (1, 2, 3)


@in_loop
async def test_of_cumulative_outputs_the_last_one_counts() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    outputs = [output((0, "a", [10], None)), output((0, "ab", [10, 11], "stop"), finished=True)]
    _, offered = await through(Champion(*outputs), SamplingParams(output_kind=RequestOutputKind.CUMULATIVE))
    assert offered[0].complete().champion.answers[0].token_ids == (10, 11)


@in_loop
async def test_one_of_two_answers_finished_is_cancelled_when_the_client_leaves() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    champion = Champion(output((0, "a", [10], "stop")), output((1, "b", [11], "stop"), finished=True))
    _, offered = await through(champion, SamplingParams(n=2, output_kind=RequestOutputKind.DELTA), leave_after=1)
    assert champion.closed
    assert offered[0].complete().champion.outcome is Outcome.CANCELLED


@in_loop
async def test_the_champions_error_is_the_users_and_the_exchange_failed() -> None:
    from vllm import SamplingParams

    fault = RuntimeError("out of blocks")
    with pytest.raises(RuntimeError) as caught:
        await through(Champion(fault=fault), SamplingParams())
    assert caught.value is fault


async def stream_of_inputs() -> AsyncGenerator[Any, None]:
    yield None


@pytest.mark.parametrize("case", ["embeds", "multimodal", "stream", "label", "lora", "beam"])
@in_loop
async def test_what_is_no_exchange_of_token_ids_is_answered_and_offered_with_its_reason(case: str) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from understudy.fork import Fork

    label = SamplingParams(max_tokens=1)
    label.logprob_token_ids = [3, 4]
    prompt, params, request_id, more, reason = {
        "embeds": ({"type": "embeds"}, SamplingParams(), "r", {}, "prompt_embeds"),
        "multimodal": ({"type": "multimodal"}, SamplingParams(), "r", {}, "multimodal"),
        "stream": (stream_of_inputs(), SamplingParams(), "r", {}, "streaming_input"),
        "label": ({"type": "token"}, label, "generative-scoring-x-0", {}, "label_read"),
        "lora": ({"type": "token"}, SamplingParams(), "r", {"lora_request": LoRARequest("x", 1, "/x")}, "other_model"),
        "beam": ({"type": "token"}, SamplingParams(), "cmpl-x-0123456789abcdef-beam-0", {}, "beam_search"),
    }[case]
    offered: list[Any] = []
    context = RequestContext(RequestFacts(endpoint="/v1/completions"))
    current.set(context)
    fork = Fork(Champion(output((0, "a", [10], "stop"), finished=True)), "champion", offered.append)
    for _ in range(3):  # many calls of one HTTP request are one exchange
        assert [each async for each in fork.generate(prompt, params, request_id, **more)]
    assert [witness.unsupported for witness in context.answered] == [reason]
    if case == "stream":
        await prompt.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)


def test_a_client_cannot_pass_for_beam_search() -> None:
    from vllm import SamplingParams

    from understudy.fork import Fork

    fork = Fork(Champion(), "champion", lambda _: None)
    assert fork._unsupported({"type": "token"}, SamplingParams(), "chatcmpl-my-beam-1", None) is None


def test_every_method_of_vllms_engine_client_reaches_the_champion() -> None:
    from vllm.engine.protocol import EngineClient

    from understudy.fork import Fork

    champion: Any = type("Everything", (), {"__getattr__": lambda _, name: f"champion's {name}"})()
    fork = Fork(champion, "champion", lambda _: None)
    names = [name for name in dir(EngineClient) if not name.startswith("_") and name != "generate"]
    assert len(names) > 20
    for name in [*names, "vllm_config", "renderer", "log_stats"]:
        assert getattr(fork, name) == f"champion's {name}"


def test_an_engine_option_under_server_is_refused() -> None:
    from understudy.config import parse
    from understudy.errors import ConfigError
    from understudy.openai_app import arguments

    with pytest.raises(ConfigError, match=r"server.max_model_len: is an option of the engine"):
        arguments(parse({"champion": {"model": "m"}, "server": {"max_model_len": 8}}))
    with pytest.raises(ConfigError, match=r"server.tool_call_parsr.*did you mean 'tool_call_parser'"):
        arguments(parse({"champion": {"model": "m"}, "server": {"tool_call_parsr": "hermes"}}))


def test_another_tokenizer_reads_prompt_and_answers_off_the_loop_that_serves_the_champion() -> None:
    import threading

    from tests.builders import answer, exchange
    from vllm import SamplingParams

    from understudy.engines.vllm_engine import VllmEngine

    encoded: dict[str, str] = {}

    class Tokenizer:
        def encode(self, text: str, **_: Any) -> list[int]:
            encoded[text] = threading.current_thread().name
            return [len(text)]

        def decode(self, _token_ids: Any) -> str:
            raise AssertionError("the text is there")

    engine = object.__new__(VllmEngine)
    engine.name, engine.same_tokenizer, engine._max_model_len = "rival", False, 100
    engine._tokenizer = engine._champion_tokenizer = Tokenizer()  # type: ignore[assignment]
    whole = exchange("x", answer(7, text="an answer"), answer(8, text="another"), prompt_text="the prompt")
    request = asyncio.run(engine.prepare(replace(whole, parameters=SamplingParams(n=2))))
    assert (request.prompt_token_ids, request.champion_token_ids) == ((10,), ((9,), (7,)))
    assert set(encoded) == {"the prompt", "an answer", "another"}
    assert threading.current_thread().name not in encoded.values()


def test_how_a_champion_samples_on_the_cpu_does_not_depend_on_a_challenger_that_speculates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.sample import rejection_sampler, sampler
    from vllm.v1.sample.ops import logprobs

    from understudy.engines import host

    for owner, name in (
        (rejection_sampler, "expand_batch_to_tokens"),
        (sampler, "batched_count_greater_than"),
        (logprobs, "batched_count_greater_than"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
    monkeypatch.setattr(host, "current_platform", SimpleNamespace(device_type="cpu"))
    before = rejection_sampler.expand_batch_to_tokens
    host.prepare_cpu()  # of every engine process, whoever is in it
    assert rejection_sampler.expand_batch_to_tokens is not before


@in_loop
async def test_who_waits_for_a_call_to_an_engine_that_dies_hears_of_it() -> None:
    """vLLM fails requests then, and leaves its utility calls waiting for ever."""
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    from understudy.engines.vllm_engine import declare_dead

    client: Any = AsyncMPClient.__new__(AsyncMPClient)
    client.resources, client.outputs_queue = SimpleNamespace(engine_dead=False), asyncio.Queue()
    client.utility_results, client.client_index = {}, 0
    client._ensure_output_queue_task = lambda: None
    client._send_input_message = lambda *_: asyncio.sleep(0)
    client.encoder = SimpleNamespace(encode=lambda _: ())
    call = asyncio.ensure_future(client._call_utility_async("understudy_start_scoring", engine=b"0"))
    await asyncio.sleep(0)
    assert client.utility_results
    declare_dead(SimpleNamespace(engine_core=client))  # type: ignore[arg-type]
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(call, 10)


@in_loop
async def test_a_core_that_is_ready_and_does_not_answer_does_not_hold_up_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.engine import core_client

    from understudy.engines import vllm_engine
    from understudy.engines.processes import CoreSpec
    from understudy.errors import EngineStartError
    from understudy.meter.traffic import Traffic

    class Silent:
        def __init__(self, *_: Any, **__: Any) -> None:
            assert core_client.VLLM_ENGINE_READY_TIMEOUT_S <= 10
            raise TimeoutError

    monkeypatch.setattr(vllm_engine, "AsyncLLM", Silent)
    monkeypatch.setattr(vllm_engine.AsyncEngineArgs, "create_engine_config", lambda *_: None)
    monkeypatch.setattr(vllm_engine.Executor, "get_class", lambda *_: None)
    with pytest.raises(EngineStartError, match="rival was ready and does not answer"):
        vllm_engine.connect(CoreSpec.at("/tmp", "rival", 0, {"model": "m"}), Traffic())
