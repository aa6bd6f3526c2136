"""Two engines in one process: what vLLM does to its registry, and what we do about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, Counter, generate_latest

from understudy.engines.registry import own_registry, taken


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    kept = taken()
    yield
    taken()
    for collector in kept:
        REGISTRY.register(collector)


def connect_as_vllm_does() -> Counter:
    """PrometheusStatLogger's constructor: throw out what is there, register one's own."""
    taken()
    return Counter("vllm:prompt_tokens", "Prompt tokens.")


def test_a_second_engine_leaves_the_first_ones_metrics_alone() -> None:
    champion = connect_as_vllm_does()
    champion.inc(3)
    with own_registry() as registry:
        challenger = connect_as_vllm_does()
    challenger.inc(5)
    assert b"vllm:prompt_tokens_total 3.0" in generate_latest(REGISTRY)
    assert b"vllm:prompt_tokens_total 5.0" in generate_latest(registry)
    assert b"vllm:prompt_tokens_total 5.0" not in generate_latest(REGISTRY)


def test_an_engine_that_fails_to_connect_gives_the_champions_metrics_back() -> None:
    connect_as_vllm_does().inc(3)

    def fail() -> None:
        with own_registry():
            connect_as_vllm_does()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert b"vllm:prompt_tokens_total 3.0" in generate_latest(REGISTRY)
