"""Comparators: two observations in, numbers out. The table below is all of them; base.py has their contract."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from understudy.compare.base import Comparator, Pair, ParseTools
from understudy.compare.callables import UserComparator
from understudy.compare.options import CompareSpec
from understudy.types import Comparison, Exchange, Observation

COMPARATORS = {
    "exact": "understudy.compare.exact",
    "agreement": "understudy.compare.agreement",
    "likelihood": "understudy.compare.likelihood",
    "text": "understudy.compare.text",
    "chrf": "understudy.compare.chrf",
    "length": "understudy.compare.length",
    "tokens": "understudy.compare.tokens",
    "latency": "understudy.compare.latency",
    "cost": "understudy.compare.cost",
    "schema": "understudy.compare.schema",
    "structure": "understudy.compare.structure",
    "tools": "understudy.compare.tools",
    "refusal": "understudy.compare.refusal",
    "label": "understudy.compare.label",
}

Compare = Callable[[Exchange, Observation], Awaitable[Comparison]]
Guard = Callable[[str], AbstractContextManager[None]]


def unguarded(_operation: str) -> AbstractContextManager[None]:
    """What a comparator raises is raised."""
    return nullcontext()


class Comparators:
    """The comparators of one configuration, imported once. The journey awaits one (Compare).

    Args:
        spec: which ones, and their options.
        guard: counts what a comparator raises; its numbers are then missing, and the exchange is compared all the same.

    Attributes:
        parse_tools: vLLM's own tool parser, set where the server has one configured.

    Raises:
        ConfigError: a comparator needs a package that is not installed, or a callable cannot be imported.
    """

    parse_tools: ParseTools | None = None

    def __init__(self, spec: CompareSpec | None = None, guard: Guard = unguarded) -> None:
        self.spec = spec or CompareSpec()
        self._guard = guard
        self._thread = ThreadPoolExecutor(1, "compare")
        comparators: dict[str, Comparator] = {name: load(name, self.spec) for name in self.spec.names}
        for name, path in self.spec.callables.items():
            comparators[f"custom_{name}"] = UserComparator(name, path)
        self._comparators: Mapping[str, Comparator] = comparators

    async def __call__(self, exchange: Exchange, challenger: Observation) -> Comparison:
        """In a thread, so that long texts do not hold up the event loop.

        One exchange at a time: comparing takes no more of the interpreter than one thread can, and no thread that
        others need.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.compare, exchange, challenger)

    def compare(self, exchange: Exchange, challenger: Observation) -> Comparison:
        """Every number that could be computed; one that is not finite could not."""
        pair = Pair(exchange, challenger, self.spec, self.parse_tools)
        values: dict[str, float] = {}
        for name, comparator in self._comparators.items():
            with self._guard(f"compare {name}"):
                values |= comparator.compare(pair)
        return Comparison({name: value for name, value in values.items() if math.isfinite(value)})


def load(name: str, options: CompareSpec | None = None) -> Comparator:
    """The comparator of that name in the table, checked against ``options`` where it has anything to check.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    module: Any = import_module(COMPARATORS[name])
    if options is not None and hasattr(module, "check"):
        module.check(options)
    comparator: Comparator = module
    return comparator
