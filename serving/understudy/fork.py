"""The fork: vLLM's EngineClient around the champion, with journey.answer() on every generation (steps 2 to 4).

vLLM's API server holds this where it would hold its AsyncLLM. Everything but generate() goes straight through.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from understudy.api.context import NO_HTTP, RequestContext, current
from understudy.engines.vllm_engine import measured, to_answer, with_share
from understudy.journey import answer
from understudy.lane.holding import EXCHANGE_BYTES, NUMBER_BYTES, OUTPUT_BYTES
from understudy.meter.gaps import Gaps, added, gaps_between
from understudy.meter.traffic import Traffic
from understudy.types import NOT_MEASURED, Answer, Exchange, Measured, Observation, Outcome, Timings

# vLLM numbers the prompts of one request; what the client sees as the response's id has no number. Only the batch
# route numbers chats: elsewhere such an ending is the client's own, from its X-Request-Id.
_BEAM = re.compile(r"-[0-9a-f]{16,}-beam-\d+$")
_NUMBERED = re.compile(r"((?:cmpl|generative-scoring|decision)-.+)-\d+|(resp_.+)_\d+")
_NUMBERED_CHAT = re.compile(r"(chatcmpl-.+)_\d+")


def response_id(request_id: str, endpoint: str = "") -> str:
    """The id under which the client knows the answer, from the id under which vLLM asks the engine."""
    numbered = _NUMBERED.fullmatch(request_id)
    if numbered:
        return numbered[1] or numbered[2]
    chat = _NUMBERED_CHAT.fullmatch(request_id) if endpoint.endswith("/batch") else None
    return chat[1] if chat else request_id


class ChampionWitness:
    """Keeps references to what the champion gave, and makes an Exchange of them when the lane asks."""

    __slots__ = (
        "_arrived_s", "_arrived_unix_s", "_batch_size", "_each_s", "_error", "_finished_s", "_mark", "_model",
        "_outcome", "_outputs", "_parameters", "_prompt", "_request_id", "_says_logprobs", "_times_s", "_traffic",
        "context", "exchange_id", "held_bytes", "unsupported",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        request_id: str,
        parameters: SamplingParams,
        context: RequestContext | None,
        traffic: Traffic | None = None,
        says_logprobs: bool = True,
    ) -> None:
        self.exchange_id = uuid.uuid4().hex
        self.context = context
        self.unsupported: str | None = None
        self.held_bytes = 0
        self._model = model
        self._request_id = response_id(request_id, "" if context is None else context.facts.endpoint)
        self._parameters = parameters
        self._arrived_unix_s = time.time()
        self._arrived_s = time.monotonic()
        self._times_s: list[float] = []  # of each output
        self._traffic = traffic
        self._says_logprobs = says_logprobs
        self._mark = (0, 0) if traffic is None else traffic.mark
        self._each_s = 0.0 if traffic is None else traffic.each_s
        self._batch_size: float | None = None
        self._finished_s = self._arrived_s
        self._prompt: RequestOutput | None = None
        self._outputs: list[list[CompletionOutput]] = []
        self._outcome = Outcome.CANCELLED
        self._error: str | None = None

    @property
    def shadow_off(self) -> bool:
        """Whether the client opted out."""
        return self.context is not None and self.context.facts.shadow_off

    def see(self, output: RequestOutput) -> None:
        """Keep the references and the time; the first output also has the prompt."""
        self._times_s.append(time.monotonic())
        if self._prompt is None:
            self._prompt = output
        self._outputs.append(output.outputs)

    def close(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """How it ended. A stream that was left after its last token is finished all the same."""
        self._finished_s = time.monotonic()
        if self._traffic is not None:
            self._batch_size = self._traffic.batch_since(self._mark)
            self._each_s = self._traffic.each_s - self._each_s
        self._outcome = outcome
        self._error = None if error is None else f"{type(error).__name__}: {error}"
        self.held_bytes = self._size_bytes()  # asked on the answer's path, so lengths and no generators: 0.4 us

    def complete(self) -> Exchange:
        """The exchange. Copies token ids; the lane calls it, not the answer's path."""
        answers = self._answers()
        outcome = self._outcome
        if (
            outcome is Outcome.CANCELLED
            and len(answers) == self._parameters.n
            and all(a.finish_reason not in (None, "abort") for a in answers)
        ):
            outcome = Outcome.FINISHED
        elif any(a.finish_reason == "abort" for a in answers):
            outcome = Outcome.CANCELLED
        elif any(a.finish_reason == "error" for a in answers):
            outcome = Outcome.FAILED
        prompt = self._prompt
        champion = Observation(
            model=self._model,
            outcome=outcome,
            prompt_token_ids=tuple(prompt.prompt_token_ids or ()) if prompt is not None else (),
            answers=answers,
            timings=Timings(self._arrived_s, self._times_s[0] if self._times_s else None, self._finished_s),
            error=self._error,
            measured=with_share(self._measured(), self._each_s, answers),
        )
        return Exchange(
            exchange_id=self.exchange_id,
            request_id=self._request_id,
            arrived_unix_s=self._arrived_unix_s,
            facts=self.context.facts_with_body() if self.context is not None else NO_HTTP,
            parameters=self._parameters,
            prompt_text=prompt.prompt if prompt is not None else None,
            champion=champion,
        )

    def _size_bytes(self) -> int:
        """About what these references keep in memory."""
        size_bytes = EXCHANGE_BYTES + OUTPUT_BYTES * len(self._outputs)
        if self._prompt is not None:
            size_bytes += NUMBER_BYTES * len(self._prompt.prompt_token_ids or ())
            for output in self._outputs[-1]:
                size_bytes += NUMBER_BYTES * len(output.token_ids)
        if self.context is not None:
            for chunk in self.context.body:
                size_bytes += len(chunk)
        return size_bytes

    def _measured(self) -> Measured:
        """The engine's own times, and the gaps of each answer's stream as they passed here."""
        if self._prompt is None:
            return NOT_MEASURED
        gaps: tuple[Gaps, ...] = ()
        if self._parameters.output_kind != RequestOutputKind.FINAL_ONLY:
            by_index: dict[int, list[float]] = {}
            if self._parameters.n == 1:
                by_index[0] = self._times_s
            else:
                for time_s, outputs in zip(self._times_s, self._outputs, strict=True):
                    for output in outputs:
                        by_index.setdefault(output.index, []).append(time_s)
            gaps = tuple(map(gaps_between, by_index.values()))
        return measured(self._prompt, self._batch_size, added(*gaps))

    def _answers(self) -> tuple[Answer, ...]:
        """One answer for each index. Deltas are joined; of cumulative and final outputs the last one counts."""
        by_index: dict[int, list[CompletionOutput]] = {}
        for outputs in self._outputs:
            for output in outputs:
                by_index.setdefault(output.index, []).append(output)
        if self._parameters.output_kind != RequestOutputKind.DELTA:
            by_index = {index: outputs[-1:] for index, outputs in by_index.items()}
        answers = tuple(to_answer(by_index[index]) for index in sorted(by_index))
        return answers if self._says_logprobs else tuple(replace(each, logprobs=None) for each in answers)


class _Delegating(EngineClient):
    """Every name of EngineClient, sent on to the champion, so that a new vLLM method cannot be missed."""

    def __init__(self, champion: AsyncLLM) -> None:
        self._champion = champion

    def __getattr__(self, name: str) -> Any:
        return getattr(self._champion, name)


def _delegated(name: str) -> property:
    return property(lambda self: getattr(self._champion, name), doc=f"The champion's own {name}.")


for _name in dir(EngineClient):
    if not _name.startswith("_") and _name != "generate":
        setattr(_Delegating, _name, _delegated(_name))
_Delegating.__abstractmethods__ = frozenset({"generate"})


class Fork(_Delegating):
    """The champion's EngineClient, watched.

    Args:
        champion: answers everything.
        model: the champion's name in the record.
        offer: takes what was answered; the lane's.
        adapter: the name of the champion's own LoRA adapter. Requests for anything else that this server holds
            (the base model, other adapters) are answered, and shed with a counted reason.
        traffic: what the champion's engine did meanwhile.
        says_logprobs: whether the champion's logprobs are those of its own distribution (``logprobs_mode``); others are
            not taken for such.
    """

    def __init__(
        self,
        champion: AsyncLLM,
        model: str,
        offer: Callable[[ChampionWitness], None],
        adapter: str | None = None,
        traffic: Traffic | None = None,
        says_logprobs: bool = True,
    ) -> None:
        super().__init__(champion)
        self._traffic = traffic
        self._says_logprobs = says_logprobs
        self._model = model
        self._adapter = adapter
        self._offer = offer

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """The champion's stream, untouched: the same objects, the same errors."""
        outputs: AsyncGenerator[RequestOutput, None] = self._champion.generate(
            prompt, sampling_params, request_id, **more
        )
        context = current.get()
        why = self._unsupported(prompt, sampling_params, request_id, more.get("lora_request"))
        if why is not None:
            self._note_unsupported(why, request_id, sampling_params, context)
            return outputs
        witness = ChampionWitness(self._model, request_id, sampling_params, context, self._traffic, self._says_logprobs)
        return answer(outputs, witness, self._hand_over)

    def _unsupported(self, prompt: Any, parameters: SamplingParams, request_id: str, lora_request: Any) -> str | None:
        """Why this generation is no exchange of the champion's, or not one of token ids, if it is none."""
        if isinstance(prompt, AsyncGenerator):
            return "streaming_input"
        kind = prompt.get("type", "token") if isinstance(prompt, dict) else "token"
        if kind != "token":  # the ids are placeholders then: no challenger would get the same input
            return "prompt_embeds" if kind == "embeds" else "multimodal"
        if parameters.logprob_token_ids:  # /generative_scoring and the like: one token, sampled and not looked at
            return "label_read"
        if _BEAM.search(request_id):  # beam search asks for one token at a time: many calls
            return "beam_search"
        asked = None if lora_request is None else lora_request.lora_name
        return None if asked == self._adapter else "other_model"

    def _note_unsupported(
        self, why: str, request_id: str, parameters: SamplingParams, context: RequestContext | None
    ) -> None:
        """One exchange for the whole HTTP request, to be shed with a counted reason."""
        if context is None or context.answered:
            return
        witness = ChampionWitness(self._model, _BEAM.sub("", request_id), parameters, context)
        witness.unsupported = why
        witness.close(Outcome.FINISHED)
        self._hand_over(witness)

    def _hand_over(self, witness: ChampionWitness) -> None:
        context = witness.context
        if context is not None and context.open:
            context.answered.append(witness)  # the middleware offers it when the last byte was sent
        else:
            self._offer(witness)
