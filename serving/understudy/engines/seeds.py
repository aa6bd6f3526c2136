"""Seeded sampling of a prompt that is read in several steps, on the CPU.

vLLM 0.32 samples in every step, also for a request whose prompt is not read to its end, discards that token and turns
the request's generator back by an offset. A CPU generator has none: the engine core dies with "CPU Generator does not
use offset", of any request with a seed and a prompt longer than a step. Here the state is kept and put back instead,
so the answer is that of a prompt read in one step.
"""

from __future__ import annotations

from typing import Any

import numpy
from vllm.platforms import current_platform


def install(core: Any) -> None:
    """Make it so in every worker of vLLM's EngineCore; does nothing on a device whose generators have an offset."""
    if current_platform.device_type == "cpu":
        core.model_executor.collective_rpc(install_in_worker)


def install_in_worker(worker: Any) -> None:
    """Runs in the worker, which may be a process of its own: its model runner (V1) keeps the states."""
    runner = worker.model_runner
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    def unfinished() -> dict[int, Any]:
        """Generators, by row, of requests whose sampled token will be discarded."""
        batch = runner.input_batch
        if not batch.generators:
            return {}
        rows = numpy.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0]
        return {int(row): batch.generators[row] for row in rows if row in batch.generators}

    def sample_and_turn_back(*args: Any, **kwargs: Any) -> Any:
        states = [(generator, generator.get_state()) for generator in unfinished().values()]
        output = sample(*args, **kwargs)
        for generator, state in states:
            generator.set_state(state)
        return output

    def keep_out_of_sight(*args: Any, **kwargs: Any) -> Any:
        hidden = unfinished()
        for row in hidden:
            del runner.input_batch.generators[row]
        try:
            return bookkeeping(*args, **kwargs)
        finally:
            runner.input_batch.generators.update(hidden)

    runner._sample, runner._bookkeeping_sync = sample_and_turn_back, keep_out_of_sight
