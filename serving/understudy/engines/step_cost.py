"""What a challenger's step costs, as measured: how much a drafted token adds decides how many are worth proposing.

    seconds = fixed + row * num_rows + drafted * (1 if any token is drafted) + token * num_drafted

Steps of the machine's own traffic say it, so it holds for this model on this device at this load. Only ratios matter,
and until enough was seen a prior gives them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

PRIOR = np.array([1.0, 0.02, 0.25, 0.02])
"""fixed, row, drafted, token, in steps: of a model of 1 M parameters on the CPU (20 us a token, 1.1 ms a step)."""
DOUBT = 0.1
"""How many measured steps a coefficient of the prior is worth."""
WINDOW = 128
REFIT_EVERY = 16
"""Steps at first; later as many as half of the window, for a fit takes 0.5 ms."""
OUTLIER = 1.5
"""A step that took this many times what was expected is cut to it: somebody else had the processor."""


@dataclass(frozen=True, slots=True)
class Price:
    """Of one step, in any unit: without drafts, for having any, and for each drafted token."""

    plain: float = 1.0
    drafted: float = float(PRIOR[2])
    token: float = float(PRIOR[3])


class StepCost:
    """Watches steps in which every row only generates."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=WINDOW)
        self._new = 0
        self._costs = PRIOR

    def saw(self, num_rows: int, num_drafted: int, seconds: float) -> None:
        """A step took so long."""
        self._steps.append((num_rows, num_drafted, seconds))
        self._new += 1
        if self._new >= max(REFIT_EVERY, len(self._steps) // 2):
            self._new = 0
            self._costs = fitted(self._steps)

    def price(self, num_rows: int) -> Price:
        """Of a step of so many rows, each with one token of its own."""
        fixed, row, drafted, token = self._costs.tolist()
        return Price(fixed + row * num_rows, drafted, token)


def fitted(steps: deque[tuple[int, int, float]]) -> np.ndarray:
    """[4]: the coefficients that explain the steps best, by relative error; where they do not tell, the prior's."""
    counted = np.array(steps)
    num_rows, num_drafted, seconds = counted.T
    terms = np.stack([np.ones_like(num_rows), num_rows, num_drafted > 0, num_drafted], axis=1)
    unit = max(float(np.median(seconds / (terms @ PRIOR))), 1e-9)
    prior = expected_costs = PRIOR * unit
    for _ in range(2):  # the second time without outliers
        expected = terms @ expected_costs
        within = np.clip(seconds, expected / OUTLIER, expected * OUTLIER)
        weights = np.concatenate([1 / expected, np.sqrt(DOUBT) / prior])
        rows = np.concatenate([terms, np.eye(len(prior))]) * weights[:, None]
        found = np.linalg.lstsq(rows, np.concatenate([within, prior]) * weights, rcond=None)[0]
        expected_costs = np.maximum(found, prior * 0.1)  # nothing is free
    return expected_costs
