"""What paired, bounded numbers prove, however often someone looks.

The units i = 1..t have D_i = score(challenger) - score(champion) in [lowest, highest], higher is better. For
any m in between, by betting on the mean with K = 24 fixed stakes c_k in (0, 1):

    E_t(m)  = (1/K) sum_k prod_i (1 + l_k (D_i - m)),  l_k = c_k / (m - lowest)     against "mean <= m"
    E'_t(m) = (1/K) sum_k prod_i (1 - l_k (D_i - m)),  l_k = c_k / (highest - m)    against "mean >= m"

Under the hypothesis in quotes each is a non-negative supermartingale with mean at most 1, so by Ville's
inequality it ever reaches 1/alpha with probability at most alpha: looking early, often, or stopping because
of what one saw costs nothing. At m = -margin the first is the claim GO (not worse by the margin), the second
is NO-GO. All m that neither rejects are the confidence sequence. The two never exceed 1 together: log E is
concave in l with slope sum(D_i - m) at 0, so one needs a positive and the other a negative sum.

Sources: Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting (the products,
the mixture over a grid, the confidence sequence); Howard et al. 2021, Time-uniform confidence sequences;
Ramdas et al. 2023, Game-theoretic statistics (Ville's inequality, evidence under optional stopping).

The products do not depend on the order, so the evidence is a multiset: how often each value of D occurred.
{-1, 0, 1} gives three counts. Sets over replicas merge by adding, and a unit whose label changed can be taken
out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

STAKES: Array = np.geomspace(0.002, 0.95, 24)
"""c_k: the bets as fractions of the largest that cannot go broke. Shape [24]."""

ANY_LOOK_FACTOR = 2.3
"""Units needed at any look, 80% power, over units of a design with fixed n (by simulation: serving/README.md)."""

MOST_UNITS = 10_000_000
"""Further away than this is reported as unknown."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A multiset of D. ``values`` and ``counts`` have shape [num_distinct], values ascending.

    Memory: 16 bytes per distinct value. ``log_e_*`` cost 24 logarithms per distinct value, an end of the
    interval 30 times that.
    """

    values: Array
    counts: Array
    lowest: float = -1.0
    highest: float = 1.0

    @classmethod
    def of(
        cls,
        differences: Mapping[float, float] | Iterable[float],
        *,
        lowest: float = -1.0,
        highest: float = 1.0,
    ) -> Evidence:
        """From values, or from value -> how often.

        Raises:
            ValueError: a value is outside [lowest, highest] or not a number.
        """
        counter = differences if isinstance(differences, Mapping) else Counter(differences)
        items = sorted((value, count) for value, count in counter.items() if count)
        values = np.array([value for value, _ in items], dtype=np.float64)
        counts = np.array([count for _, count in items], dtype=np.float64)
        if not bool(np.all((values >= lowest) & (values <= highest))):
            raise ValueError(f"differences must lie in [{lowest}, {highest}]")
        return cls(values, counts, lowest, highest)

    def merged(self, other: Evidence) -> Evidence:
        """Both together, for replicas that saw different units."""
        total = Counter(dict(zip(self.values.tolist(), self.counts.tolist(), strict=True)))
        total.update(dict(zip(other.values.tolist(), other.counts.tolist(), strict=True)))
        return Evidence.of(total, lowest=min(self.lowest, other.lowest), highest=max(self.highest, other.highest))

    def swapped(self) -> Evidence:
        """Champion and challenger with their sides exchanged: every D becomes -D."""
        return Evidence(-self.values[::-1], self.counts[::-1], -self.highest, -self.lowest)

    @property
    def num_units(self) -> int:
        """How many units it holds."""
        return round(float(self.counts.sum()))

    @property
    def mean(self) -> float | None:
        """The mean difference, None for no units."""
        return float(self.values @ self.counts / self.counts.sum()) if self.counts.size else None

    def log_e_go(self, margin: float) -> float:
        """log E_t(-margin). GO at level alpha from log(1/alpha) upwards."""
        return _log_mean_exp(self._log_products(-margin))

    def log_e_no_go(self, margin: float) -> float:
        """log E'_t(-margin). NO-GO at level alpha from log(1/alpha) upwards."""
        return _log_mean_exp(self.swapped()._log_products(margin))

    def lower_end(self, alpha: float) -> float:
        """The lower end of the confidence sequence of the mean: below it, E_t rejects.

        Wrong at any look ever with probability at most alpha; above -margin exactly when GO holds.
        """
        threshold, low, high = math.log(1 / alpha), self.lowest, self.highest
        for _ in range(30):  # E_t(m) falls in m; 30 halvings give 2e-9
            middle = (low + high) / 2
            if _log_mean_exp(self._log_products(middle)) >= threshold:
                low = middle
            else:
                high = middle
        return low

    def upper_end(self, alpha: float) -> float:
        """The upper end: above it, E'_t rejects; below -margin exactly when NO-GO holds."""
        return -self.swapped().lower_end(alpha)

    def interval(self, alpha: float) -> tuple[float, float]:
        """The confidence sequence of the mean: each end holds with 1 - alpha, both with 1 - 2 alpha."""
        return self.lower_end(alpha), self.upper_end(alpha)

    def units_to_go(self, margin: float, alpha: float) -> int | None:
        """How many more units until GO if they go on as they did; None where it is not in sight.

        "As they did" has ten imagined units mixed in, of equal models that differ in one of ten (or, where D
        cannot be positive, that use up half the margin), so that the first few units do not promise too much.
        """
        return _units_until(self, self._imagined(margin), -margin, alpha)

    def units_to_no_go(self, margin: float, alpha: float) -> int | None:
        """The same until NO-GO."""
        return _units_until(self.swapped(), self._imagined(margin).swapped(), margin, alpha)

    def _imagined(self, margin: float) -> Evidence:
        worse, better = (0.5, 0.5) if self.highest > 0 else (5 * margin, 0.0)
        return Evidence.of({-1.0: worse, 0.0: 10 - worse - better, 1.0: better}, highest=self.highest)

    def _log_products(self, mean: float) -> Array:
        """log prod_i (1 + l_k (D_i - mean)) for each stake; shape [24]."""
        payoffs = (self.values - mean) / (mean - self.lowest)  # [num_distinct], each >= -1
        products: Array = np.log1p(STAKES[:, None] * payoffs) @ self.counts
        return products


def _log_mean_exp(logs: Array) -> float:
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).mean()))


def _units_until(evidence: Evidence, imagined: Evidence, mean: float, alpha: float) -> int | None:
    products = evidence._log_products(mean)
    total = float(evidence.counts.sum() + imagined.counts.sum())
    growth = (products + imagined._log_products(mean)) / total  # log per unit, for each stake
    low, high, threshold = 0, MOST_UNITS, math.log(1 / alpha)
    if _log_mean_exp(products + high * growth) < threshold:
        return None
    while low < high:
        middle = (low + high) // 2
        if _log_mean_exp(products + middle * growth) >= threshold:
            high = middle
        else:
            low = middle + 1
    return low


def planned_units(
    margin: float,
    *,
    discordant_fraction: float = 0.1,
    difference: float = 0.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int:
    """Units to plan for before there are any: 2.3 (z_{1-a} + z_{1-b})^2 (p_disc - D^2) / (margin + D)^2.

    Args:
        margin: how much worse the challenger may be.
        discordant_fraction: p_disc, how often exactly one of the two is right.
        difference: D, the true difference that is expected; above -margin.
        alpha: probability of a false GO.
        power: 1 - b, probability of a GO by then.
    """
    if difference <= -margin:
        raise ValueError("a challenger that is worse by the margin never reaches GO")
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    variance = discordant_fraction - difference**2
    return math.ceil(ANY_LOOK_FACTOR * z**2 * variance / (margin + difference) ** 2)
