"""A histogram for prometheus_client's registries that costs little to observe.

The event loop that streams answers observes seven values for each model and exchange. prometheus_client's own
histogram took 6 us each, for finding the labels' child and for a lock a bucket; this one takes 0.5.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from understudy.meter.metrics import Labels


class Histogram(Collector):
    """Values in buckets, by label values. Any thread may observe and collect.

    Args:
        name, words, labels: as prometheus_client has them.
        buckets: upper bounds, ascending and finite; a value on a bound is in its bucket.
        registry: gets it.
    """

    def __init__(
        self, name: str, words: str, labels: Sequence[str], buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._words, self._labels, self._buckets = name, words, tuple(labels), tuple(buckets)
        bounds = (*buckets, float("inf"))
        self._names: list[str] = [floatToGoString(bound) for bound in bounds]  # type: ignore[no-untyped-call]
        self._counts: dict[tuple[str, ...], list[float]] = {}  # of each bucket, and at last the sum of all values
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, value: float, labels: Labels) -> None:
        """One value more. Raises KeyError if a label is missing."""
        key = tuple([labels[name] for name in self._labels])
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = [0.0] * (len(self._names) + 1)
            counts[bisect_left(self._buckets, value)] += 1
            counts[-1] += value

    def describe(self) -> list[HistogramMetricFamily]:
        """The family without values: the registry asks for its name."""
        return [HistogramMetricFamily(self._name, self._words, labels=self._labels)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For prometheus_client."""
        with self._lock:
            taken = {key: list(counts) for key, counts in self._counts.items()}
        family = HistogramMetricFamily(self._name, self._words, labels=self._labels)
        for key, (*counts, total) in taken.items():
            family.add_metric(key, list(zip(self._names, accumulate(counts), strict=True)), total)
        yield family
