"""vLLM's own metrics, one registry for each engine.

vLLM keeps its metrics in prometheus_client's global registry, and a second AsyncLLM throws out those of the first
(``unregister_vllm_metrics`` in PrometheusStatLogger). The champion's stay where vLLM's server looks for them; what a
challenger registers while it is connected goes to a registry of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

PREFIX = "vllm:"


@contextmanager
def own_registry() -> Iterator[CollectorRegistry]:
    """vLLM's metrics that are registered in the block go to the registry that it gives. Nothing may await inside."""
    others, own = taken(), CollectorRegistry()
    try:
        yield own
    finally:
        for collector in taken():
            own.register(collector)
        for collector in others:
            REGISTRY.register(collector)


def taken() -> list[Any]:
    """vLLM's collectors, out of the global registry: found as vLLM itself finds them."""
    found = [each for each in list(REGISTRY._collector_to_names) if getattr(each, "_name", "").startswith(PREFIX)]
    for collector in found:
        REGISTRY.unregister(collector)
    return found
