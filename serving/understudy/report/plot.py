"""Where to draw an interval, its margin and zero. Numbers only; page.html has the shapes."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.report.view import GateView

WIDTH = 360.0
EDGE = 14.0
"""Room on either side for arrow heads, in the plot's own units."""


@dataclass(frozen=True, slots=True)
class Plot:
    """x positions in a box of ``WIDTH``. ``cut_*`` tell that the interval goes on beyond the box."""

    margin_x: float
    zero_x: float
    low_x: float
    high_x: float
    cut_low: bool
    cut_high: bool
    mean_x: float | None


def plot(gate: GateView) -> Plot:
    """A scale on which mean and margin can be seen: 2 to 5 margins to the left, more where the mean is there.

    A young interval is -100 to +100 points; drawn whole, a margin of 2 points would lie on zero.
    """
    margin, mean = gate.margin_fraction, abs(gate.difference_fraction or 0.0)
    wanted = max(1.15 * abs(gate.low), 1.15 * abs(gate.high), 2 * margin)
    left = -min(wanted, max(5 * margin, 1.3 * mean))
    right = -left if gate.high > 0 else -left / 4

    def x(value: float) -> float:
        inside = min(max(value, left), right)
        return round(EDGE + (inside - left) / (right - left) * (WIDTH - 2 * EDGE), 1)

    return Plot(
        margin_x=x(-gate.margin_fraction),
        zero_x=x(0.0),
        low_x=x(gate.low),
        high_x=x(gate.high),
        cut_low=gate.low < left,
        cut_high=gate.high > right,
        mean_x=None if gate.difference_fraction is None else x(gate.difference_fraction),
    )
