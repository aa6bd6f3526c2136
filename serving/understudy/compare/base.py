"""The contract of a comparator: one file each, one line in the table in __init__.py.

A comparator is a pure function of the two observations. It returns numbers by name; a number that cannot be
computed is left out, never invented. Its names are documented in its ``NAMES``. It must not assume that the
challenger answered, or that both gave the same number of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from understudy.types import Observation


class Comparator(Protocol):
    """``NAMES`` maps each number it can return to its meaning."""

    NAMES: Mapping[str, str]

    @staticmethod
    def compare(champion: Observation, challenger: Observation) -> Mapping[str, float]:
        """Numbers by name; a subset of ``NAMES``."""
