"""What the shadow costs on the answer's path: the hand-over, and one output passing through the fork.

    python -m benchmarks.serving.bench_handover [--out FILE.json]

The real Fork, Front's bookkeeping and Lane, on a champion that yields ready-made vLLM RequestOutputs, so that
nothing but our own code is timed. Challengers are fakes: their work is off the path, and the lane is drained
between batches. Arms:

    handover     closing the witness and offering it to the lane: from the champion's last output to the end of
                 the request's bookkeeping (goal: p99 of 20 us)
    nothing      timing an empty block: the resolution (A/A)
    stream       microseconds for each output, through the fork and straight from the champion, in turn
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator
from typing import Any

from benchmarks.common import finish, machine, parser, percentiles, ratio
from understudy.api.context import RequestContext, current
from understudy.config import ShadowSpec
from understudy.engines.fake import FakeEngine
from understudy.lane.lane import Lane
from understudy.types import RequestFacts

GOAL_US, STRETCH_US = 20.0, 5.0
NUM_OUTPUTS = 64


class Nobody:
    """Hears what the lane does and keeps nothing."""

    def accepted(self, *_: Any) -> None:
        """Nothing."""

    def ended(self, *_: Any) -> None:
        """Nothing."""


class ReadyMade:
    """A champion that yields the same outputs for every request."""

    def __init__(self) -> None:
        from vllm.outputs import CompletionOutput, RequestOutput

        self.outputs = [
            RequestOutput(
                request_id="r",
                prompt="a prompt",
                prompt_token_ids=list(range(128)),
                prompt_logprobs=None,
                outputs=[CompletionOutput(0, "word ", [index], None, None)],
                finished=index == NUM_OUTPUTS - 1,
            )
            for index in range(NUM_OUTPUTS)
        ]

    async def generate(self, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        """Never waits."""
        for output in self.outputs:
            yield output


async def measure(num_requests: int) -> dict[str, Any]:
    """All arms in one event loop."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from understudy.fork import ChampionWitness, Fork

    champion = ReadyMade()
    lane = Lane([FakeEngine("one"), FakeEngine("two")], ShadowSpec(), Nobody())
    lane.start()
    parameters = SamplingParams(max_tokens=NUM_OUTPUTS, output_kind=RequestOutputKind.DELTA)
    handovers: list[float] = []
    nothing: list[float] = []

    def offer(witness: ChampionWitness) -> None:
        lane.offer(witness)

    fork = Fork(champion, "champion", offer)
    through: list[float] = []
    straight: list[float] = []
    for number in range(num_requests):
        context = RequestContext(RequestFacts(endpoint="/v1/chat/completions"))
        current.set(context)
        through.append(await drain(fork.generate("p", parameters, f"r{number}")))
        straight.append(await drain(champion.generate()))
        witness = context.answered[0]
        started = time.perf_counter()
        witness.close(witness._outcome)
        context.open = False
        fork._hand_over(witness)
        handovers.append(1e6 * (time.perf_counter() - started))
        started = time.perf_counter()
        nothing.append(1e6 * (time.perf_counter() - started))
        if number % 100 == 99:
            await lane.idle()
    await lane.idle()
    counts = lane.totals()
    await lane.close()
    assert counts["sampled"] == counts["compared"] == 2 * num_requests, counts
    at = (50, 90, 99, 99.9)
    return {
        "handover_us": percentiles(handovers, at) | {"max": max(handovers)},
        "nothing_us": percentiles(nothing, at) | {"max": max(nothing)},
        "output_us": {
            "fork": percentiles([1e6 * each / NUM_OUTPUTS for each in through]),
            "champion": percentiles([1e6 * each / NUM_OUTPUTS for each in straight]),
            "fork / champion": ratio(through, straight),
        },
    }


async def drain(stream: Any) -> float:
    """Seconds to read a stream to its end."""
    started = time.perf_counter()
    async for _ in stream:
        pass
    return time.perf_counter() - started


def main() -> None:
    """Measure, print the table, end in one JSON line."""
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=20_000)
    given = options.parse_args()
    gc.freeze()
    results = {
        "benchmark": "handover",
        "regime": {
            "requests": given.requests,
            "outputs": NUM_OUTPUTS,
            "prompt_tokens": 128,
            "challengers": 2,
        },
        "machine": machine(),
        "goal_us": GOAL_US,
        "stretch_us": STRETCH_US,
        **asyncio.run(measure(given.requests)),
    }
    for name in ("handover_us", "nothing_us"):
        print(f"{name:<14}" + "".join(f"{key} {value:8.2f}   " for key, value in results[name].items()))
    for name, row in results["output_us"].items():
        print(f"{name:<18}" + "".join(f"{key} {value:8.3f}   " for key, value in row.items()))
    finish(results, given.out)


if __name__ == "__main__":
    main()
