"""Comparators: two observations in, numbers out. The table below is all of them."""

from __future__ import annotations

import math
from importlib import import_module

from understudy.types import Comparison, Observation

COMPARATORS = {
    "exact": "understudy.compare.exact",
    "agreement": "understudy.compare.agreement",
    "likelihood": "understudy.compare.likelihood",
}


def compare(champion: Observation, challenger: Observation) -> Comparison:
    """Every comparator's numbers on one pair of observations; one that is not finite could not be computed."""
    values: dict[str, float] = {}
    for module in COMPARATORS.values():
        values |= import_module(module).compare(champion, challenger)
    return Comparison({name: value for name, value in values.items() if math.isfinite(value)})
