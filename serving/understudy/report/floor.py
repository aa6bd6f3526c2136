"""What is above the noise floor: both models beside the champion's first answer, over the exchanges answered twice.

Every number of every comparator that both comparisons have is kept: the champion's own value is what it gets for
answering again, so only the difference says anything about the challenger.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from understudy.types import Ending


@dataclass(frozen=True, slots=True)
class FloorFigure:
    """One number of a comparator. ``own`` and ``challenger`` are means over the same ``exchanges``.

    ``excess`` is the challenger's mean minus the champion's own: what is left when the noise is taken away. It is a
    field, so that the report's JSON has it.
    """

    name: str
    exchanges: int
    own: float
    challenger: float
    excess: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "excess", self.challenger - self.own)


@dataclass
class FloorFigures:
    """The sums. Memory: three numbers for each name."""

    _sums: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    def add(self, ending: Ending) -> None:
        """Count an ending that has a floor and a comparison."""
        if ending.floor is None or ending.floor.comparison is None or ending.comparison is None:
            return
        challengers = ending.comparison.values
        for name, own in ending.floor.comparison.values.items():
            if name in challengers:
                count, sum_own, sum_challenger = self._sums.get(name, (0, 0.0, 0.0))
                self._sums[name] = count + 1, sum_own + own, sum_challenger + challengers[name]

    def figures(self) -> tuple[FloorFigure, ...]:
        """The means, by name."""
        return tuple(
            FloorFigure(name, count, own / count, challenger / count)
            for name, (count, own, challenger) in sorted(self._sums.items())
        )
