"""Our histogram says what prometheus_client's own would say."""

from __future__ import annotations

import random
import threading

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from understudy.meter.histogram import Histogram
from understudy.meter.metrics import BATCH, LATENCY_S

LABELS = ("role", "model")


def lines(registry: CollectorRegistry, *, openmetrics: bool) -> list[str]:
    written = (generate_openmetrics if openmetrics else generate_latest)(registry).decode().splitlines()
    return [line for line in written if "_created" not in line]


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("buckets", [LATENCY_S, BATCH])
def test_the_same_lines_as_prometheus_clients_own(buckets: tuple[float, ...], openmetrics: bool) -> None:
    ours, theirs, dice = CollectorRegistry(), CollectorRegistry(), random.Random(1)
    own = prometheus_client.Histogram("a_seconds", "words", LABELS, buckets=buckets, registry=theirs)
    new = Histogram("a_seconds", "words", LABELS, buckets, ours)
    for _ in range(300):
        labels = {"model": dice.choice(["m", 'quo"te\n']), "role": "champion"}
        value = dice.choice([dice.expovariate(1.0), *buckets, 0.0, 1e9])
        own.labels(**labels).observe(value)
        new.observe(value, labels)
    assert lines(ours, openmetrics=openmetrics) == lines(theirs, openmetrics=openmetrics)
    assert len(lines(ours, openmetrics=openmetrics)) > 2 * len(buckets)


def test_without_values_there_is_the_family_alone_and_names_are_taken_once() -> None:
    registry = CollectorRegistry()
    new = Histogram("a_seconds", "words", LABELS, (1.0,), registry)
    assert lines(registry, openmetrics=False) == ["# HELP a_seconds words", "# TYPE a_seconds histogram"]
    with pytest.raises(ValueError, match="a_seconds"):
        Histogram("a_seconds", "words", LABELS, (1.0,), registry)
    with pytest.raises(KeyError, match="model"):
        new.observe(1.0, {"role": "champion"})


def test_no_value_is_lost_between_threads() -> None:
    registry = CollectorRegistry()
    new = Histogram("a", "words", ("model",), (1.0, 2.0), registry)

    def observe() -> None:
        for _ in range(5_000):
            new.observe(1.5, {"model": "m"})

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert (registry.get_sample_value("a_bucket", {"model": "m", "le": "1.0"}) or 0.0) == 0.0
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("a_count", {"model": "m"}) == 20_000
    assert registry.get_sample_value("a_sum", {"model": "m"}) == 30_000.0
    assert registry.get_sample_value("a_bucket", {"model": "m", "le": "2.0"}) == 20_000
