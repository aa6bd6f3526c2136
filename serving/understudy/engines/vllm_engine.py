"""A challenger on vLLM: an Engine over AsyncLLM, and how both roles connect to their cores.

The only file, with host.py and fork.py, that knows vLLM's types.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import core_client
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor import Executor

from understudy.config import ModelSpec
from understudy.engines import scoring, speculate
from understudy.engines.base import DeviceUse, Health, ShadowRequest
from understudy.engines.flight import Steps
from understudy.engines.processes import CoreSpec, Deaths, EngineProcess
from understudy.engines.registry import own_registry
from understudy.engines.render import messages_of, text_of
from understudy.errors import (
    ConfigError,
    EngineDead,
    EngineError,
    EngineStartError,
    NotFinite,
    OutOfMemory,
    Unsupported,
)
from understudy.meter.gaps import Gaps
from understudy.meter.traffic import Kind, Traffic, share_of
from understudy.types import Answer, Exchange, Measured, Observation, Score, Timings

Result = TypeVar("Result")
ANSWER_TIMEOUT_S = 10
"""Of a core that said it is ready. The event loop stands still meanwhile; vLLM's own is 600 s."""


def connect(spec: CoreSpec, traffic: Traffic) -> AsyncLLM:
    """An AsyncLLM on a core that is ready. Its constructor blocks until the core answers, which it already has.

    Args:
        traffic: counts what the engine does, unless the user turned its statistics off (``disable_log_stats``).

    Raises:
        EngineStartError: it does not answer: its process ended after it was ready.
    """
    args = AsyncEngineArgs(**speculate.without_speculation(spec.engine_args))
    config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    core_client.VLLM_ENGINE_READY_TIMEOUT_S = ANSWER_TIMEOUT_S
    try:
        return AsyncLLM(
            config,
            Executor.get_class(config),
            log_stats=not args.disable_log_stats,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=None if args.disable_log_stats else [lambda _config, _index: traffic],
            log_requests=args.enable_log_requests,
            client_addresses={"input_address": spec.input_address, "output_address": spec.output_address},
        )
    except TimeoutError as fault:
        raise EngineStartError(f"{spec.name} was ready and does not answer") from fault


def load_tokenizer(model: ModelSpec) -> Any:
    """A model's tokenizer as vLLM has it, without the model.

    Raises:
        ConfigError: there is none.
    """
    given = model.engine_args
    args = {name: given[name] for name in ("tokenizer_mode", "trust_remote_code") if name in given}
    revision = given.get("tokenizer_revision", given.get("revision"))
    try:
        return get_tokenizer(given.get("tokenizer", model.model), revision=revision, **args)
    except (OSError, ValueError) as fault:
        raise ConfigError(f"champion.model: the tokenizer of {model.model!r} cannot be loaded: {fault}") from fault


def declare_dead(llm: AsyncLLM) -> None:
    """Fail everything in flight and everything to come: what vLLM does when it sees its own engine process end."""
    client = llm.engine_core
    client.resources.engine_dead = True
    client.outputs_queue.put_nowait(EngineDeadError())
    for waiting in client.utility_results.values():  # of these vLLM itself fails none
        if not waiting.done():
            waiting.set_exception(EngineDeadError())


async def connect_champion(
    spec: CoreSpec, process: EngineProcess, dead: asyncio.Event, deaths: Deaths, traffic: Traffic
) -> AsyncLLM:
    """The champion's AsyncLLM; ``dead`` is set when its core is gone.

    Raises:
        EngineStartError: the core did not come up.
    """
    await process.ready(spec.name)
    llm = connect(spec, traffic)
    traffic.watch(partial(process.flight.busy_s, process.index(spec.name)))

    def died(_why: str) -> None:
        dead.set()
        declare_dead(llm)

    deaths.listen(spec.name, died)
    return llm


async def connect_challenger(
    model: ModelSpec,
    spec: CoreSpec,
    process: EngineProcess,
    champion_tokenizer: Any,
    deaths: Deaths,
) -> VllmEngine:
    """A challenger that is up and warm.

    Raises:
        EngineStartError: the core did not come up.
    """
    load_s = await process.ready(spec.name)
    traffic = Traffic()
    traffic.watch(partial(process.flight.busy_s, process.index(spec.name)))
    with own_registry() as metrics:
        llm = connect(spec, traffic)
    steps = partial(process.steps, spec.name)
    speculative = speculate.speculates(spec.engine_args)
    engine = VllmEngine(model, llm, champion_tokenizer, load_s, traffic, metrics, steps, speculative=speculative)
    engine.others_busy_s = partial(process.others_busy_s, spec.name)
    engine.weights = process.weights.get(spec.name, {})
    deaths.listen(spec.name, engine.died)
    await engine.warm_up()
    process.flight.forget_slices(process.index(spec.name))
    return engine


class VllmEngine:
    """See engines/base.py for the contract."""

    def __init__(
        self,
        model: ModelSpec,
        llm: AsyncLLM,
        champion_tokenizer: Any,
        load_s: float,
        traffic: Traffic | None = None,
        metrics: CollectorRegistry | None = None,
        steps: Callable[[], Steps] = Steps,
        *,
        speculative: bool = False,
    ) -> None:
        self.name = model.name
        self.steps = steps
        self.load_s = load_s
        self.weights: Mapping[str, int] = {}
        self.others_busy_s: Callable[[], float] = float
        self.traffic = traffic or Traffic()
        self.metrics = metrics or CollectorRegistry()
        self.speculative = speculative
        self.llm = llm
        self._champion_tokenizer = champion_tokenizer
        self._tokenizer = llm.renderer.tokenizer
        self.same_tokenizer = shares_vocabulary(self._champion_tokenizer, self._tokenizer)
        self.vocab_size: int = llm.model_config.get_vocab_size()
        self._max_model_len: int = llm.model_config.max_model_len
        self._lora = None if model.lora is None else LoRARequest(model.name, 1, model.lora)
        self._can_score = model.lora is None or not adapts_head(model.lora)
        self.scoring = {"path": "none", "why": "its adapter changes lm_head" if not self._can_score else "not warm yet"}
        self._why_dead = ""

    def health(self) -> Health:
        """Ready until the core is gone."""
        if not self._why_dead and self.llm.errored:
            return Health(False, "its engine core is gone")
        return Health(not self._why_dead, self._why_dead)

    def died(self, why: str) -> None:
        """The core is gone; nothing will bring it back before a restart."""
        self._why_dead = self._why_dead or why
        declare_dead(self.llm)

    async def warm_up(self) -> None:
        """Choose how it scores, and score once, so that the first exchange does not pay for what is set up lazily."""
        if self._can_score:
            async with translated(self.name):
                self.scoring = await self.llm.engine_core.call_utility_async("understudy_start_scoring")
            await self._score_one((1, 2, 3), (4, 5))

    async def prepare(self, exchange: Exchange) -> ShadowRequest:
        """Identical token ids where the tokenizers agree, the same messages in its own template where not."""
        answers = exchange.champion.answers
        if self.same_tokenizer:
            prompt = exchange.champion.prompt_token_ids
            champion_ids = tuple(answer.token_ids for answer in answers)
        else:
            refuse_token_parameters(exchange.parameters)
            # Off the loop that serves the champion: its whole prompt and answers are tokenized anew.
            prompt, champion_ids = await asyncio.to_thread(self._in_own_tokens, exchange)
        if len(prompt) + 1 > self._max_model_len:
            raise Unsupported("too_long", f"{len(prompt)} prompt tokens, {self.name} holds {self._max_model_len}")
        return ShadowRequest(
            model=self.name,
            prompt_token_ids=prompt,
            champion_token_ids=champion_ids,
            parameters=self._parameters(exchange.parameters, len(prompt)),
            rendered="token_ids" if self.same_tokenizer else "own_template",
            arrived_s=time.monotonic(),
        )

    async def score(self, request: ShadowRequest) -> tuple[Score, ...]:
        """A prefill-like pass for each champion answer, all at once; none where the adapter changes lm_head."""
        if not self._can_score:
            return ()
        same = request.rendered == "token_ids"  # else there is nothing to lay side by side
        return await together(
            self._score_one(
                request.prompt_token_ids,
                ids,
                keep=f"{request.keep}-{index}" if request.keep and same else "",
                against=f"{request.against}-{index}" if request.against and same else "",
            )
            for index, ids in enumerate(request.champion_token_ids)
        )

    async def generate(self, request: ShadowRequest) -> Observation:
        """Its own answer. Only the finished one leaves the engine process; the engine says when its tokens came."""
        started_s = time.monotonic()  # the scoring pass before it is not part of its answer
        mark, each_s = self.traffic.mark, self.traffic.each_s
        drafts = request.champion_token_ids if self.speculative else ()
        parameters = speculate.with_draft(request.parameters, drafts)
        final = await self._run(request.prompt_token_ids, parameters)
        outputs = sorted(final.outputs, key=lambda output: output.index)
        answers = tuple(to_answer([output]) for output in outputs)
        timings = Timings(started_s, first_token_s(final), time.monotonic())
        took = measured(final, self.traffic.batch_since(mark))
        took = with_share(took, self.traffic.each_s - each_s, answers)
        observation = request.observation(answers, timings, took)
        # Off the loop that serves the champion: some microseconds a token.
        return replace(observation, draft=await asyncio.to_thread(speculate.counts, outputs, parameters))

    async def busy_s(self) -> float:
        """From the flight recorder: it answers at once, whatever the engine process is doing."""
        return self.steps().busy_s

    def device_use(self) -> DeviceUse:
        """From the flight recorder, too."""
        return DeviceUse(self.steps().busy_s, self.others_busy_s())

    async def close(self) -> None:
        """Close the client; the engine process is closed by its owner."""
        self._why_dead = self._why_dead or "closed"
        self.llm.shutdown()

    async def _score_one(
        self, prompt: tuple[int, ...], answer: tuple[int, ...], *, keep: str = "", against: str = ""
    ) -> Score:
        """What it makes of ``answer`` after ``prompt``, as far as its context reaches."""
        each_s = self.traffic.each_s
        score = await self._read(prompt, answer, keep=keep, against=against)
        busy_s = self.traffic.each_s - each_s
        return replace(score, busy_s=busy_s) if busy_s > 0.0 else score

    async def _read(self, prompt: tuple[int, ...], answer: tuple[int, ...], *, keep: str, against: str) -> Score:
        targets = scoring.scorable(prompt, answer, self._max_model_len)
        if not targets:
            return scoring.NOT_SCORED
        if self.scoring["path"] != "vllm":
            parameters = scoring.parameters(prompt, targets, keep=keep, against=against)
            final = await self._run(scoring.tokens_to_read(prompt, targets), parameters, Kind.SCORE)
            return scoring.unpack(final, len(targets))
        targets = targets[: self._max_model_len - 1 - len(prompt)]  # here the last one needs a row as well
        if not targets:
            return scoring.NOT_SCORED
        final = await self._run([*prompt, *targets], scoring.vllm_parameters(), Kind.SCORE)
        return scoring.unpack_vllm(final, prompt, targets)

    async def _run(self, prompt: Sequence[int], parameters: SamplingParams, kind: Kind = Kind.ANSWER) -> RequestOutput:
        """Run to the end. vLLM aborts the work in the engine when this is cancelled."""
        request_id = f"{kind}-{uuid.uuid4().hex}"
        final: RequestOutput | None = None
        async with translated(self.name):
            stream = self.llm.generate(tokens_input(list(prompt)), parameters, request_id, lora_request=self._lora)
            async for output in stream:
                final = output
        if final is None or not final.finished:
            raise EngineError(f"{self.name} ended without an answer")
        bad = next((output for output in final.outputs if output.finish_reason in ("error", "abort")), None)
        if bad is not None and bad.stop_reason == OutOfMemory.reason:  # core.Core.recover
            raise OutOfMemory(f"{self.name} had no memory for this request")
        if bad is not None and bad.stop_reason == NotFinite.reason:  # finite.py
            raise NotFinite(f"{self.name} gave logits that are no numbers")
        if bad is not None:
            raise EngineError(f"{self.name} ended with finish_reason {bad.finish_reason!r}")
        return final

    def _parameters(self, champion: SamplingParams, num_prompt_tokens: int) -> SamplingParams:
        """The champion's parameters in full; only how the result is delivered differs."""
        mine = own_copy(champion)
        mine.output_kind = RequestOutputKind.FINAL_ONLY
        mine.extra_args = {
            name: value for name, value in (mine.extra_args or {}).items() if name != scoring.KEY
        } or None
        mine.prompt_logprobs = mine.prompt_logprob_token_ids = mine.prompt_logprob_start = None
        room = self._max_model_len - num_prompt_tokens
        mine.max_tokens = room if mine.max_tokens is None else min(mine.max_tokens, room)
        return mine

    def _in_own_tokens(self, exchange: Exchange) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """The prompt and the champion's answers in this challenger's vocabulary."""
        encode = partial(self._tokenizer.encode, add_special_tokens=False)
        return self._render(exchange), tuple(tuple(encode(answer.text)) for answer in exchange.champion.answers)

    def _render(self, exchange: Exchange) -> tuple[int, ...]:
        """The prompt in this challenger's own template and vocabulary."""
        chat = messages_of(exchange)
        if chat is None:
            text = text_of(exchange, self._champion_tokenizer.decode)
            return tuple(self._tokenizer.encode(text))
        rendered = self._tokenizer.apply_chat_template(
            list(chat.messages), tools=chat.tools, add_generation_prompt=True, tokenize=False
        )
        return tuple(self._tokenizer.encode(rendered, add_special_tokens=False))


async def together(parts: Iterable[Coroutine[Any, Any, Result]]) -> tuple[Result, ...]:
    """All results; when one fails, or this is cancelled, the others are cancelled before it raises."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def own_copy(champion: SamplingParams) -> SamplingParams:
    """A copy that shares nothing with the champion's request, and holds nothing that its engine put there.

    vLLM's server marks parameters ``skip_clone``, and clone() is then shallow: the set of stop ids, to which each
    engine adds its own model's, and the chosen structured-output backend would be one object for all models.
    """
    mine = copy.deepcopy(champion)
    mine.skip_clone = False
    mine._all_stop_token_ids = set(mine.stop_token_ids or ())
    if mine.structured_outputs is not None:
        mine.structured_outputs._backend = None
        mine.structured_outputs._backend_was_auto = False
    return mine


@asynccontextmanager
async def translated(name: str) -> AsyncIterator[None]:
    """vLLM's errors become ours at this seam."""
    try:
        yield
    except EngineDeadError as fault:
        raise EngineDead(f"{name}: the engine is gone") from fault
    except EngineGenerateError as fault:
        raise EngineError(f"{name}: {fault.__cause__ or fault}") from fault
    except (ValueError, VLLMClientError) as fault:
        raise Unsupported("rejected", f"{name} does not accept this request: {fault}") from fault


def shares_vocabulary(champion: Any, challenger: Any) -> bool:
    """Whether every token of the champion has the same id in the challenger, which may have more."""
    return bool(champion.get_vocab().items() <= challenger.get_vocab().items())


def adapts_head(adapter: str) -> bool:
    """Whether a PEFT adapter has weights for lm_head."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    touched = [*(config.get("modules_to_save") or ()), *as_list(config.get("target_modules"))]
    return any("lm_head" in name for name in touched)


def as_list(names: Any) -> list[str]:
    """PEFT writes one name as text and several as a list."""
    return [names] if isinstance(names, str) else list(names or ())


def refuse_token_parameters(parameters: SamplingParams) -> None:
    """Parameters that name token ids mean something else in another vocabulary."""
    for name in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
        if getattr(parameters, name, None):
            raise Unsupported("token_id_parameters", f"{name} does not carry over to another tokenizer")


def to_answer(outputs: list[CompletionOutput]) -> Answer:
    """One Answer from the deltas, or the one final output, of one completion. Copies; call it off the answer's path."""
    token_ids = tuple(chain.from_iterable([output.token_ids for output in outputs]))
    logprobs = [
        row[token].logprob
        for output in outputs
        if output.logprobs
        for row, token in zip(output.logprobs, output.token_ids, strict=False)
    ]
    return Answer(
        token_ids=token_ids,
        text="".join([output.text for output in outputs]),
        finish_reason=outputs[-1].finish_reason,
        logprobs=tuple(logprobs) if len(logprobs) == len(token_ids) and logprobs else None,
    )


def measured(output: RequestOutput, batch_size: float | None, gaps: Gaps = ()) -> Measured:
    """What vLLM measured of a generation (RequestStateStats). Of n answers, the times of the one this output is of."""
    stats = output.metrics
    if stats is None or not stats.queued_ts:  # disable_log_stats
        return Measured(cached_prompt_tokens=output.num_cached_tokens, batch_size=batch_size, gaps=gaps)
    seen = bool(stats.first_token_ts)
    return Measured(
        queue_s=stats.scheduled_ts - stats.queued_ts if stats.scheduled_ts else None,
        prefill_s=stats.first_token_ts - stats.scheduled_ts if seen else None,
        decode_s=stats.last_token_ts - stats.first_token_ts if seen else None,
        cached_prompt_tokens=output.num_cached_tokens,
        batch_size=batch_size,
        gaps=gaps,
    )


def with_share(took: Measured, each_s: float, answers: Sequence[Answer]) -> Measured:
    """``took`` with its share of the engine's busy seconds; ``each_s``: by how much Traffic.each_s rose meanwhile."""
    waited_s, served_s = took.queue_s or 0.0, (took.prefill_s or 0.0) + (took.decode_s or 0.0)
    return replace(took, busy_s=share_of(each_s, waited_s, served_s, [len(each.token_ids) for each in answers]))


def first_token_s(output: RequestOutput) -> float | None:
    """When the engine had the first token: its process reads the same monotonic clock (CLOCK_MONOTONIC is a machine's).

    None where the engine keeps no statistics.
    """
    stats = output.metrics
    return stats.first_token_ts or None if stats is not None else None


def describe_parameters(parameters: SamplingParams) -> Mapping[str, Any]:
    """The parameters as JSON for the record: everything that is set."""
    return {
        name: value if type(value) in _PLAIN else _described(value)
        for name, value in zip(_DESCRIBED, _VALUES(parameters), strict=True)
        if value is not None
    }


# Looked up once: for every exchange this runs in the process that serves, and took 15 us of its GIL, now 5.
_DESCRIBED = tuple(name for name in SamplingParams.__struct_fields__ if not name.startswith("_"))
_VALUES = attrgetter(*_DESCRIBED)
_PLAIN = (bool, int, float, str, list, dict)


def _described(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    return _set_in(value) if dataclasses.is_dataclass(value) else repr(value)


def _set_in(value: Any) -> dict[str, Any]:
    """The fields of one of vLLM's own dataclasses that are set, without what an engine keeps in it."""
    fields = ((each.name, getattr(value, each.name)) for each in dataclasses.fields(value))
    return {name: given for name, given in fields if given is not None and not name.startswith("_")}


# How an answer is delivered, or what only an engine's own request may have.
_NOT_RESTORED = {
    "output_kind", "skip_clone", "output_text_buffer_length", "stream_interval", "flat_logprobs", "prompt_logprobs",
    "prompt_logprob_token_ids", "prompt_logprob_start",
}  # fmt: skip
_MAY_BE_TEXT = {"stop"}


def restore_parameters(described: Mapping[str, Any]) -> SamplingParams:
    """The parameters that ``describe_parameters`` described, for a replay.

    Raises:
        Unsupported: the record does not have them in full, or they are not of this version of vLLM.
    """
    values = {name: value for name, value in described.items() if name not in _NOT_RESTORED}
    for name, value in values.items():
        if isinstance(value, str) and name not in _MAY_BE_TEXT:  # a repr: older records have some
            raise Unsupported("parameters_not_recorded", f"{name} is recorded as {value[:80]!r} only")
    if "logit_bias" in values:  # JSON has no other keys than texts
        values["logit_bias"] = {int(token): bias for token, bias in values["logit_bias"].items()}
    try:
        if "structured_outputs" in values:
            values["structured_outputs"] = StructuredOutputsParams(**values["structured_outputs"])
        if "repetition_detection" in values:
            values["repetition_detection"] = RepetitionDetectionParams(**values["repetition_detection"])
        return SamplingParams(**{"max_tokens": None, **values})  # what was None was not described
    except (TypeError, ValueError, VLLMClientError) as fault:
        raise Unsupported("parameters_not_recorded", str(fault)) from fault
