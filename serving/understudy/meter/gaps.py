"""The gaps between the outputs of a stream, as a histogram: small, exact to add up, read by quantile.

A bucket is an integer b and holds the gaps in [GROWTH**b, GROWTH**(b+1)) seconds; its middle is less than 5% away
from anything in it. An answer of a thousand tokens has some ten of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

GROWTH = 1.1
SHORTEST_S = 1e-6
"""What is shorter, or no time at all, counts as this."""

Gaps = tuple[tuple[int, int], ...]
"""(bucket, how many), by bucket."""

_LOG_GROWTH = math.log(GROWTH)


def middle_s(bucket: int) -> float:
    """The geometric middle of a bucket, seconds."""
    return float(GROWTH ** (bucket + 0.5))


def gaps_between(times_s: Iterable[float]) -> Gaps:
    """The gaps of one stream from the monotonic times of its outputs, in order. 0.2 us a gap, in the event loop."""
    log, floor, shortest_s = math.log, math.floor, SHORTEST_S
    counts = Counter(
        [
            floor(log(gap_s if (gap_s := now - before) > shortest_s else shortest_s) / _LOG_GROWTH)
            for before, now in pairwise(times_s)
        ]
    )
    return tuple(sorted(counts.items()))


def added(*many: Gaps) -> Gaps:
    """The gaps of several streams together."""
    if len(many) == 1:
        return many[0]
    counts: Counter[int] = Counter()
    for gaps in many:
        counts.update(dict(gaps))
    return tuple(sorted(counts.items()))


def quantile_s(gaps: Gaps, fraction: float) -> float | None:
    """The gap that ``fraction`` of all gaps do not exceed, within 5%; None without gaps."""
    total = sum(count for _, count in gaps)
    below = 0
    for bucket, count in gaps:
        below += count
        if below >= fraction * total:
            return middle_s(bucket)
    return None
