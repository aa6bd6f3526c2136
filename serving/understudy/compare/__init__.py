"""Comparators: two observations in, numbers out. The table below is all of them; base.py has their contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

from understudy.compare.base import Comparator, Pair, ParseTools
from understudy.compare.options import CompareSpec
from understudy.types import Comparison, Exchange, Observation

COMPARATORS = {
    "exact": "understudy.compare.exact",
    "agreement": "understudy.compare.agreement",
    "likelihood": "understudy.compare.likelihood",
}

Compare = Callable[[Exchange, Observation], Comparison]
Guard = Callable[[str], AbstractContextManager[None]]


def unguarded(_operation: str) -> AbstractContextManager[None]:
    """What a comparator raises is raised."""
    return nullcontext()


class Comparators:
    """The comparators of one configuration, imported once. Called with an exchange and what the challenger did.

    Thread-safe: the lane calls it in threads, so that long texts do not hold up the event loop.

    Args:
        spec: which ones, and their options.
        guard: counts what a comparator raises; its numbers are then missing, and the exchange is compared all the same.
        parse_tools: vLLM's own tool parser, where the server has one configured.

    Raises:
        ConfigError: a comparator needs a package that is not installed, or a callable cannot be imported.
    """

    def __init__(
        self, spec: CompareSpec | None = None, guard: Guard = unguarded, parse_tools: ParseTools | None = None
    ) -> None:
        self.spec = spec or CompareSpec()
        self._guard = guard
        self._parse_tools = parse_tools
        self._comparators: Mapping[str, Comparator] = {name: load(name) for name in self.spec.names}

    def __call__(self, exchange: Exchange, challenger: Observation) -> Comparison:
        """Every number that could be computed; one that is not finite could not."""
        pair = Pair(exchange, challenger, self.spec, self._parse_tools)
        values: dict[str, float] = {}
        for name, comparator in self._comparators.items():
            with self._guard(f"compare {name}"):
                values |= comparator.compare(pair)
        return Comparison({name: value for name, value in values.items() if math.isfinite(value)})


def load(name: str) -> Comparator:
    """The comparator of that name in the table."""
    module: Comparator = import_module(COMPARATORS[name])  # type: ignore[assignment]
    return module
