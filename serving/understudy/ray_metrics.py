"""Our metrics through ray.util.metrics: what a Ray cluster scrapes and shows of its replicas.

Ray adds ``ray_`` to the names and its own tags. vLLM's metrics are not sent here: they are at /metrics.
"""

from __future__ import annotations

from typing import Any

from ray.util import metrics

from understudy.meter.metrics import METRICS, Labels, Metric


class RaySink:
    """See meter.metrics.Sink. ``replica`` tells replicas apart."""

    def __init__(self, replica: str) -> None:
        self._tags = {"replica": replica}
        self._metrics: dict[str, Any] = {metric.name: _new(metric) for metric in METRICS}

    def add(self, metric: Metric, amount: float, labels: Labels) -> None:
        """See Sink; Ray counts nothing but what is above 0."""
        if amount > 0:
            self._metrics[metric.name].inc(amount, tags={**labels, **self._tags})

    def set(self, metric: Metric, value: float, labels: Labels) -> None:
        """See Sink."""
        self._metrics[metric.name].set(value, tags={**labels, **self._tags})

    def observe(self, metric: Metric, value: float, labels: Labels) -> None:
        """See Sink."""
        self._metrics[metric.name].observe(value, tags={**labels, **self._tags})


def _new(metric: Metric) -> Any:
    keys = (*metric.labels, "replica")
    words = f"{metric.meaning} ({metric.unit})"
    if metric.kind == "histogram":
        return metrics.Histogram(metric.name, words, boundaries=list(metric.buckets), tag_keys=keys)
    return (metrics.Counter if metric.kind == "counter" else metrics.Gauge)(metric.name, words, tag_keys=keys)
