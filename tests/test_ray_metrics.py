"""Our table as Ray's metrics: every row has a metric that takes its labels. No cluster is started."""

from __future__ import annotations

from typing import Any

import pytest

from understudy import ray_metrics
from understudy.meter.metrics import METRICS
from understudy.ray_metrics import RaySink


class Fake:
    """ray.util.metrics, strict: a value needs exactly the tags that were declared."""

    def __init__(self) -> None:
        self.values: list[tuple[str, str, float, dict[str, str]]] = []

    def __getattr__(self, kind: str) -> Any:
        def new(name: str, _words: str, *, tag_keys: tuple[str, ...], boundaries: Any = None) -> Any:
            assert (boundaries is not None) == (kind == "Histogram")
            return FakeMetric(self, kind, name, tag_keys)

        return new


class FakeMetric:
    def __init__(self, fake: Fake, kind: str, name: str, keys: tuple[str, ...]) -> None:
        self._fake, self._kind, self._name, self._keys = fake, kind, name, set(keys)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert self._kind == "Counter"
        assert value > 0  # Ray raises
        self._take(value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert self._kind == "Gauge"
        self._take(value, tags)

    def observe(self, value: float, tags: dict[str, str]) -> None:
        assert self._kind == "Histogram"
        self._take(value, tags)

    def _take(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self._keys, self._name
        self._fake.values.append((self._kind, self._name, value, tags))


def tell(sink: RaySink) -> None:
    """One value for every row."""
    for metric in METRICS:
        labels = dict.fromkeys(metric.labels, "x")
        {"counter": sink.add, "gauge": sink.set, "histogram": sink.observe}[metric.kind](metric, 0.5, labels)


def test_every_row_reaches_ray_with_its_labels_and_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(ray_metrics, "metrics", fake)
    tell(RaySink("3"))
    assert [name for _, name, _, _ in fake.values] == [metric.name for metric in METRICS]
    assert {tags["replica"] for _, _, _, tags in fake.values} == {"3"}


def test_a_counter_that_did_not_move_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(ray_metrics, "metrics", fake)
    counter = next(metric for metric in METRICS if metric.kind == "counter")
    RaySink("0").add(counter, 0.0, dict.fromkeys(counter.labels, "x"))
    assert fake.values == []


def test_ray_takes_the_whole_table() -> None:
    """The real classes: names, boundaries and tags that Ray refuses raise here."""
    tell(RaySink("0"))
