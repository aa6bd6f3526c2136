"""Preemption points: where a challenger's forward pass asks whether the champion has work.

A forward pass is a stack of Python frames. At a point between two layers the driver can step the champion inside it,
as often as there is work, and return: the challenger goes on as if nothing had happened. So the champion waits for one
layer of a challenger and not for its whole step. What belongs to the process changes hands (core.ProcessState), vLLM's
forward context is put back by vLLM, and nothing of the champion's can be seen from the challenger's frames.

Only on the CPU, where a call is done when it returns. On a GPU the calls of a whole step are queued within a
fraction of its time and a captured graph is a single call: there a stream of high priority does what can be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm.platforms import current_platform

Point = Callable[[], None]


def install(runner: Any, point: Point) -> int:
    """Put ``point`` before the layers, before each attention, before the logits and before what is made of them.

    Args:
        runner: vLLM's model runner (V1).
        point: called often, so it is to be cheap; returns when the challenger may go on.

    Returns:
        How many places it was put in; 0 where that is not possible, and a whole step is then one slice.
    """
    if current_platform.device_type != "cpu":
        return 0
    places = [
        (layer.impl, "forward")
        for layer in runner.vllm_config.compilation_config.static_forward_context.values()
        if hasattr(getattr(layer, "impl", None), "forward")
    ]
    places += [(runner, "_model_forward"), (runner.model, "compute_logits")]
    places += [(runner.sampler, name) for name in ("forward", "compute_logprobs", "gather_logprobs")]
    runner.understudy_lent_s = 0.0  # to the champion: no time of this challenger's steps (speculate.py)

    def timed() -> None:
        began_s = time.thread_time()
        point()
        runner.understudy_lent_s += time.thread_time() - began_s

    runner.understudy_point = timed  # scorer.py asks it between rows
    for owner, name in places:
        setattr(owner, name, _after(timed, getattr(owner, name)))
    return len(places)


def _after(point: Point, operation: Callable[..., Any]) -> Callable[..., Any]:
    def operate(*args: Any, **kwargs: Any) -> Any:
        point()
        return operation(*args, **kwargs)

    return operate
