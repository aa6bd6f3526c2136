"""What a scoring pass asks of a challenger's core and what comes back: the API process's half of scorer.py.

The challenger reads prompt + champion's answer as one prompt and generates one token that nobody looks at. The row
of token i predicts token i + 1, so the last token of the answer needs no row: it travels as a target only, and an
answer that fills the whole context is scored to its end. How a core scores is decided when it starts (heads.py):

    fused    understudy_kernels.score on the hidden states of the answer's rows; no logits anywhere
    logits   the model's own compute_logits on the answer's rows, a few at a time
    vllm     vLLM's prompt_logprobs: of every row of the prompt, without prefix cache; where the model runner is not
             in the engine process (tensor parallelism)

The first two bring one float32 array [num_answer_tokens, len(COLUMNS)] in vLLM's ``prompt_token_id_logprobs``,
which passes through the API process as one block of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from understudy.errors import EngineError, NotFinite
from understudy.types import Divergence, Score

KEY = "understudy_score"
"""In ``SamplingParams.extra_args``: {"first": row that predicts the first target, "targets": token ids}, and for a
divergence "keep" or "against" with the key under which the champion's hidden states lie (shelf.py)."""
COLUMNS = ("logprob", "rank", "entropy", "top1")
"""float32 holds token ids and ranks exactly up to 2**24, some sixty times the largest vocabularies."""
DIVERGENCE_COLUMNS = ("kl_forward", "kl_backward", "hellinger", "champion_entropy")
NOT_NUMBERS = "log-probabilities that are no numbers"  # -inf is one: a token that the challenger rules out
NOT_SCORED = Score((), ())


def scorable(prompt: Sequence[int], answer: Sequence[int], max_model_len: int) -> tuple[int, ...]:
    """The tokens of ``answer`` that this context has room to read and predict."""
    return tuple(answer[: max(0, max_model_len - len(prompt))]) if prompt else ()


def tokens_to_read(prompt: Sequence[int], targets: Sequence[int]) -> list[int]:
    """What is prefilled: everything but the last target."""
    return [*prompt, *targets[:-1]]


def parameters(prompt: Sequence[int], targets: Sequence[int], *, keep: str = "", against: str = "") -> SamplingParams:
    """Of a pass on the paths ``fused`` and ``logits``. The prefix cache is read up to the answer's first row.

    Args:
        prompt: token ids before the targets.
        targets: token ids to score.
        keep: leave the hidden states of the targets' rows under this key, for another core of the process.
        against: compare with those that were left under this key.
    """
    asked: dict[str, Any] = {"first": len(prompt) - 1, "targets": list(targets)}
    asked |= {name: key for name, key in (("keep", keep), ("against", against)) if key}
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={KEY: asked},
        skip_clone=True,  # vLLM would copy the targets token by token, 2 us each, on the champion's loop
    )


def vllm_parameters() -> SamplingParams:
    """Of a pass on the path ``vllm``: the token itself with its rank, and the first choice."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        prompt_logprobs=1,
    )


def unpack(output: RequestOutput, num_targets: int) -> Score:
    """The Score in what ``parameters`` brought.

    Raises:
        EngineError: rows are missing.
        NotFinite: a log-probability is no number.
    """
    rows = output.prompt_token_id_logprobs
    if rows is None or len(rows) != num_targets or np.any(rows[:, 1] < 1):
        raise EngineError(f"of {num_targets} tokens not every one was scored")
    if np.isnan(rows[:, 0]).any():
        raise NotFinite(NOT_NUMBERS)
    logprobs, ranks, entropies, top1, *compared = rows.T
    divergence = None
    if compared and not np.isnan(compared).any():
        divergence = Divergence(*(tuple(column.tolist()) for column in compared))
    return Score(
        tuple(logprobs.tolist()),
        tuple(ranks.astype(np.int64).tolist()),
        tuple(entropies.tolist()),
        tuple(top1.astype(np.int64).tolist()),
        divergence,
    )


def unpack_vllm(output: RequestOutput, prompt: Sequence[int], targets: Sequence[int]) -> Score:
    """The Score in what ``vllm_parameters`` brought; entropies are not to be had.

    Raises:
        NotFinite: as ``unpack``.
    """
    assert output.prompt_logprobs is not None
    entries: list[Any] = []
    top1: list[int] = []
    for row, token in zip(output.prompt_logprobs[len(prompt) :], targets, strict=True):
        assert row is not None
        entries.append(row[token])
        top1.append(min(row, key=lambda id: row[id].rank or math.inf))  # of two that tie for first none has rank 1
    if any(math.isnan(entry.logprob) for entry in entries):
        raise NotFinite(NOT_NUMBERS)
    return Score(tuple(e.logprob for e in entries), tuple(int(e.rank or 0) for e in entries), (), tuple(top1))
