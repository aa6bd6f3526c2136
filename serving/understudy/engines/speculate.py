"""Speculative shadow: the challenger's own output, with the champion's answer as the draft.

vLLM verifies the drafted tokens in one step of the challenger and keeps those that the challenger would have said
itself (https://arxiv.org/abs/2211.17192): greedy output is that of plain generation token for token, sampled output
has the challenger's own distribution. The draft travels with the request, in SamplingParams.extra_args, and what is
known of it hangs on vLLM's own state of the request, so that it is gone when the request ends or is aborted.

    placements.py    speculative_args()    a challenger's engine proposes through DraftProposer
    core.py          attach()              the proposer learns which row is which request, and what a step costs;
                                           the first draft goes with the prompt (first_draft.py)
    vllm_engine.py   with_draft()          a request takes its draft along, or is generated plainly
                     counts()              what became of the draft

Nothing is imported from vLLM before an engine is there: the API process asks for the first and third only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.engines.draft import Draft, Habits, Odds, lengths, realignments
from understudy.engines.step_cost import StepCost, fitted
from understudy.types import DraftCounts

PROPOSER = "understudy.engines.speculate.DraftProposer"
EXTRA_ARG = "understudy_draft"
NUM_DRAFT_TOKENS = 127
"""Most draft tokens of one request in one step; vLLM's limit is 128. Requests of one step share its room."""
LORA_SIZES = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
LOGITS_BYTES = 256 * 2**20
"""What a step's draft tokens may take: each has a row of logits, and vLLM holds about three in float32."""
NOT_WITH = ("async_scheduling", "logits_processors", "speculative_config")
"""Engine arguments of the user's that vLLM does not combine with this; the last is the user's own speculation."""


def speculative_args(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a challenger's engine with these arguments speculate; nothing where they rule it out.

    With LoRA vLLM wants room in a step for every draft token of every request. Where the sizes are not both given, they
    are given here; where they are, there are as many draft tokens as fit.

    ``num_speculative_tokens_per_batch_size`` says the same number for every batch size. It is there because vLLM
    otherwise pads a request of one uncached token with as many placeholders, which are computed and thrown away.
    """
    if any(engine_args.get(name) for name in NOT_WITH):
        return {}
    sizes: dict[str, int] = {}
    num_draft_tokens = NUM_DRAFT_TOKENS
    if engine_args.get("enable_lora"):
        sizes = {name: engine_args.get(name) or usual for name, usual in LORA_SIZES.items()}
        num_draft_tokens = min(NUM_DRAFT_TOKENS, sizes["max_num_batched_tokens"] // sizes["max_num_seqs"] - 1)
    if num_draft_tokens < 1:
        return {}
    config = {
        "method": "custom_class",
        "model": PROPOSER,
        "num_speculative_tokens": num_draft_tokens,
        "num_speculative_tokens_per_batch_size": [[1, 1, num_draft_tokens]],
    }
    return {"speculative_config": config, "per_request_spec_decode_metrics": "summary"} | sizes


def speculates(engine_args: Mapping[str, Any]) -> bool:
    """Whether an engine with these arguments proposes champion answers."""
    return (engine_args.get("speculative_config") or {}).get("model") == PROPOSER


def without_speculation(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for the API process's side of the engine.

    There, vLLM would refuse min_p and logit_bias, which the engine process can do: see attach().
    """
    if not speculates(engine_args):
        return dict(engine_args)
    ours = ("speculative_config", "per_request_spec_decode_metrics")
    return {name: value for name, value in engine_args.items() if name not in ours}


def plain_because(parameters: Any) -> str | None:
    """Why a request is generated without a draft; None where a draft changes nothing but the time.

    vLLM's verification does not apply min_p and logit_bias to drafted tokens, and takes its random numbers in
    another order, which a seed makes visible.
    """
    if parameters.logit_bias:
        return "logit_bias"
    if parameters.temperature == 0.0:
        return None
    if parameters.min_p:
        return "min_p"
    return "seed" if parameters.seed is not None else None


def with_draft(parameters: Any, answers: Sequence[Sequence[int]]) -> Any:
    """The parameters with the champion's answers as drafts, the i-th for the i-th of n. Changes its argument."""
    others = {name: value for name, value in (parameters.extra_args or {}).items() if name != EXTRA_ARG}
    if answers and plain_because(parameters) is None:
        others[EXTRA_ARG] = [list(answer) for answer in answers]
        parameters.skip_clone = True  # vLLM would copy the drafts token by token, 2 us each, on the champion's loop
    parameters.extra_args = others or None
    return parameters


def counts(outputs: Sequence[Any], parameters: Any) -> DraftCounts | None:
    """What became of the drafts that ``parameters`` brought along; None where they brought none.

    Args:
        outputs: vLLM's completions, in order.
    """
    answers = (parameters.extra_args or {}).get(EXTRA_ARG)
    if not answers:
        return None
    proposed = accepted = lost = realigned = 0
    for index, output in enumerate(outputs):
        metrics = output.spec_decode_metrics
        if metrics is not None:
            proposed += metrics.num_draft_tokens
            accepted += sum(length * steps for length, steps in enumerate(metrics.histogram))
        one = realignments(answers[min(index, len(answers) - 1)], output.token_ids)
        lost, realigned = lost + one[0], realigned + one[1]
    return DraftCounts(proposed, accepted, lost, realigned)


class DraftProposer:
    """vLLM's custom-class proposer, one for each worker. Until attach() was called it proposes nothing."""

    def __init__(self, vllm_config: Any) -> None:
        vocab_size = vllm_config.model_config.get_vocab_size()
        self._num_draft_tokens: int = vllm_config.speculative_config.num_speculative_tokens
        self._max_step_tokens: int = vllm_config.scheduler_config.max_num_batched_tokens
        self._max_draft_tokens: int = max(1, LOGITS_BYTES // (3 * 4 * vocab_size))
        self._runner: Any = None
        self._step: tuple[int, int, float, float] | None = None
        self._clock = time.perf_counter
        self.habits = Habits()
        self.cost = StepCost()

    def load_model(self, *_args: Any, **_kwargs: Any) -> None:
        """Called by vLLM; there is no model to load."""

    def attach(self, runner: Any) -> None:
        """Know the requests of ``runner``, and that it takes any request again (see plain_because()).

        With speculation vLLM builds no processors for min_p and logit_bias. Rows without drafts go through the
        ordinary sampler, where these work, so they are put back. It also stops asking for drafts when any request
        nears the end of the context, for the sake of draft models; a draft of tokens needs no room of its own.
        """
        from vllm.utils.platform_utils import is_pin_memory_available
        from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors

        arguments = (runner.vllm_config, runner.device, is_pin_memory_available())
        runner.input_batch.logitsprocs = LogitsProcessors(make(*arguments) for make in BUILTIN_LOGITS_PROCESSORS)
        runner.effective_drafter_max_model_len = runner.max_model_len + runner.num_spec_tokens
        fitted(deque([(1, 0, 1e-3)]))  # numpy imports a part of itself: 40 ms that a step would take once
        if runner.device.type == "cpu":
            self._clock = time.thread_time  # what other processes take of the processor is no cost of a step
            mend_cpu_sampler()  # host.prepare_cpu() did, except where no host did
        step_plainly_without_drafts(runner)
        execute = runner.execute_model

        def timed(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self._begins(scheduled)
            return execute(scheduled, *args, **kwargs)

        runner.execute_model = timed
        self._runner = runner

    def propose(self, sampled_token_ids: Sequence[Sequence[int]], *_args: Any, **_kwargs: Any) -> list[list[int]]:
        """Draft tokens for each row of the batch; none for a row that is still reading its prompt.

        Args:
            sampled_token_ids: what each row has just said. vLLM gives more; the requests' own state has it all.
        """
        proposed: list[list[int]] = [[] for _ in sampled_token_ids]
        if self._runner is None:
            return proposed
        self._ended()
        num_rows = len(sampled_token_ids)
        share = self.share(num_rows)
        drafts: list[Draft] = []
        rows: list[tuple[Odds, int]] = []
        places = []
        for place, (said, name) in enumerate(zip(sampled_token_ids, self._runner.input_batch.req_ids, strict=False)):
            request = self._runner.requests[name]
            draft = draft_of(request, self.habits) if said else None
            if draft is None:
                continue
            for token in request.output_token_ids[draft.num_fed :]:
                draft.feed(token)
            most = request.sampling_params.max_tokens
            limit = min(share, draft.left(), share if most is None else most - draft.num_fed - 1)  # one is its own
            if limit > 0:
                places.append(place)
                drafts.append(draft)
                rows.append((draft.odds, limit))
        chosen = lengths(rows, num_rows, self.cost.price(num_rows)) if rows else []
        for place, draft, length in zip(places, drafts, chosen, strict=True):
            proposed[place] = draft.next(length)
        return proposed

    def share(self, num_rows: int) -> int:
        """The most that each row of so many may propose."""
        return min(self._max_step_tokens // num_rows - 1, self._max_draft_tokens // num_rows, self._num_draft_tokens)

    def _begins(self, scheduled: Any) -> None:
        """Only steps without prompts are watched: those of prompts have other costs."""
        num_rows = len(scheduled.num_scheduled_tokens)
        num_drafted = sum(map(len, scheduled.scheduled_spec_decode_tokens.values()))
        is_plain = 0 < scheduled.total_num_scheduled_tokens == num_rows + num_drafted
        self._step = (num_rows, num_drafted, self._clock(), self._lent_s()) if is_plain else None

    def _ended(self) -> None:
        if self._step is not None:
            num_rows, num_drafted, started_s, lent_s = self._step
            self.cost.saw(num_rows, num_drafted, self._clock() - started_s - (self._lent_s() - lent_s))
            self._step = None

    def _lent_s(self) -> float:
        """What the champion has had of this challenger's steps so far, by the thread's time (preempt.py)."""
        return float(getattr(self._runner, "understudy_lent_s", 0.0))


def draft_of(request: Any, habits: Habits) -> Draft | None:
    """The draft of vLLM's CachedRequestState, on which it is kept so that it lives no longer."""
    draft: Draft | None = getattr(request, EXTRA_ARG, None)
    if draft is None:
        answer = answer_of(request.req_id, request.sampling_params)
        if answer:
            draft = Draft(answer, habits)
            setattr(request, EXTRA_ARG, draft)
    return draft


def answer_of(request_id: str, parameters: Any) -> Sequence[int]:
    """The champion's answer that a request brought along; nothing where it brought none."""
    drafts = ((parameters and parameters.extra_args) or {}).get(EXTRA_ARG)
    return drafts[child_index(request_id, len(drafts))] if drafts else ()


def child_index(request_id: str, num_drafts: int) -> int:
    """Which of n a request is: vLLM names them ``0_ID``, ``1_ID``, ..., and the only one ``ID``.

    Never an error: it is asked inside a step, where one would end the core. A wrong draft only costs time.
    """
    index = request_id.partition("_")[0]
    return min(int(index), num_drafts - 1) if num_drafts > 1 and index.isdecimal() else 0


def step_plainly_without_drafts(runner: Any) -> None:
    """Let a step in which nothing is drafted be prepared and sampled as on an engine that does not speculate.

    vLLM takes every step of a speculating engine through its rejection sampler: 0.2 ms more, 15% of a small model's
    step. Models with a recurrent state are left alone, because they must be told of each row that it has no draft.
    """
    if runner.model_config.is_hybrid:
        return
    prepare = runner._prepare_inputs

    def prepare_inputs(scheduled: Any, *args: Any) -> Any:
        if scheduled.scheduled_spec_decode_tokens:
            return prepare(scheduled, *args)
        config, runner.speculative_config = runner.speculative_config, None
        try:
            return prepare(scheduled, *args)
        finally:
            runner.speculative_config = config

    runner._prepare_inputs = prepare_inputs


def mend_cpu_sampler() -> None:
    """Give drafted tokens their request's temperature, top_k and top_p on the CPU.

    vLLM 0.32 spreads these over the drafted tokens with a kernel that on the CPU works on a copy, so that the sampler
    reads memory that nobody wrote (``_expand_kernel_impl`` in utils/cpu_triton_utils.py): a wrong distribution, or an
    index error that ends the engine.
    """
    import torch
    from vllm.v1.sample import rejection_sampler

    def expand(values: Any, ends: Any, _num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Any:
        per_row = torch.diff(ends, prepend=ends.new_zeros(1))
        return torch.where(values == replace_from, replace_to, values).repeat_interleave(per_row)

    rejection_sampler.expand_batch_to_tokens = expand


def attach(core: Any) -> None:
    """Attach the proposer of an engine core to its model runner, in every worker; a core without one is left alone."""
    config = core.vllm_config.speculative_config
    if config is None or config.model != PROPOSER:
        return
    core.model_executor.collective_rpc(attach_worker)
    worker = getattr(core.model_executor, "driver_worker", None)
    runner = getattr(getattr(worker, "worker", None), "model_runner", None)
    if runner is not None and not runner.model_config.is_hybrid:  # else it is in other processes
        from understudy.engines import first_draft

        first_draft.install(core.scheduler, runner.drafter)


def attach_worker(worker: Any) -> None:
    """Runs in the worker, which may be a process of its own; of a pipeline only the last stage proposes."""
    runner = worker.model_runner
    if hasattr(runner, "drafter"):
        runner.drafter.attach(runner)
