"""Latencies of both models over the same exchanges, by the engines' own clocks, and what makes them fair.

A pair counts where both engines measured the same exchange, so that neither side has the harder requests. Waiting in
the lane, in HTTP and in event loops is in none of it. Batch sizes and cache hits say how alike the circumstances were:
the challenger answers later, alone or in small batches, and its cache has not seen the champion's other requests. What
it generated with the champion's answer as the draft is left out of its speed: promoted, it would have no such draft.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from statistics import quantiles

from understudy.report.summary import Paired
from understudy.types import Exchange, Observation

MAX_PAIRS = 10_000
"""The newest; 1.3 MB for each figure and challenger."""


def _cached(seen: Observation) -> float | None:
    cached = seen.measured.cached_prompt_tokens
    return None if cached is None or not seen.prompt_token_ids else cached / len(seen.prompt_token_ids)


FIGURES: Mapping[tuple[str, str], Callable[[Observation], float | None]] = {
    ("queue", "s"): lambda seen: seen.measured.queue_s,
    ("prefill", "s"): lambda seen: seen.measured.prefill_s,
    ("TTFT", "s"): lambda seen: seen.measured.ttft_s,
    ("decode speed", "tokens/s"): lambda seen: seen.decode_tokens_per_s,
    ("end to end", "s"): lambda seen: seen.measured.end_to_end_s if seen.draft is None else None,
    ("batch size", "requests"): lambda seen: seen.measured.batch_size,
    ("prompt in cache", "fraction"): _cached,
}
"""(name, unit) -> how one side's value is read."""


class PairedFigures:
    """The pairs of one challenger."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], deque[tuple[float, float]]] = {
            figure: deque(maxlen=MAX_PAIRS) for figure in FIGURES
        }

    def add(self, exchange: Exchange, challenger: Observation) -> None:
        """One exchange that both answered."""
        for figure, read in FIGURES.items():
            theirs, mine = read(exchange.champion), read(challenger)
            if theirs is not None and mine is not None:
                self._pairs[figure].append((theirs, mine))

    def figures(self) -> tuple[Paired, ...]:
        """Those that have pairs."""
        return tuple(_paired(*figure, pairs) for figure, pairs in self._pairs.items() if pairs)


def _paired(name: str, unit: str, pairs: deque[tuple[float, float]]) -> Paired:
    theirs, mine = zip(*pairs, strict=True)
    return Paired(name, unit, len(pairs), *_p50_p95(theirs), *_p50_p95(mine))


def _p50_p95(values: tuple[float, ...]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]
