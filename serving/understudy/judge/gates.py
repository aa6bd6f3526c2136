"""One gate: which metric, how much worse the challenger may be, and how sure to be. decide.py applies it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from understudy.errors import ConfigError
from understudy.judge import metric_class
from understudy.judge.base import Metric


class Decision(StrEnum):
    """What a gate, or all of them together, say."""

    GO = "GO"
    NO_GO = "NO-GO"
    NOT_ENOUGH_DATA = "NOT ENOUGH DATA"


@dataclass(frozen=True, slots=True)
class Gate:
    """One requirement on a challenger, checked when built.

    Attributes:
        metric: a name from the table in judge/__init__.py.
        margin: how much lower the challenger's mean may be, in (0, 1). For ``missing``: the largest fraction.
        alpha: probability of a false GO, however often someone looks, in (0, 0.5].
        min_units: no decision before so many units.
        pattern: ``accuracy`` only, and needed there: a regular expression, caseless, whose group 1 is
            the answer.
        advisory: shown, but it decides nothing. ``agreement`` is always so (see ``decides``).

    Raises:
        ConfigError: with the key, the value and the rule.
    """

    metric: str
    margin: float
    alpha: float = 0.05
    min_units: int = 100
    pattern: str | None = None
    advisory: bool = False

    def __post_init__(self) -> None:
        metric = metric_class(self.metric)
        whole = isinstance(self.min_units, int) and not isinstance(self.min_units, bool)
        needs = f"metric {self.metric!r} needs one whose group 1, (...), is the answer"
        if metric.NEEDS_PATTERN:
            pattern_ok = isinstance(self.pattern, str) and _num_groups(self.pattern) >= 1
        else:
            pattern_ok, needs = self.pattern is None, f"metric {self.metric!r} takes none"
        rules = (
            ("margin", _is_number(self.margin) and 0 < self.margin < 1, "must be a number in (0, 1)"),
            ("alpha", _is_number(self.alpha) and 0 < self.alpha <= 0.5, "must be a number in (0, 0.5]"),
            ("min_units", whole and self.min_units >= 1, "must be a whole number, 1 or more"),
            ("pattern", pattern_ok, needs),
            ("advisory", isinstance(self.advisory, bool), "must be true or false"),
        )
        for key, holds, rule in rules:
            if not holds:
                raise ConfigError(f"gates.{key}: {getattr(self, key)!r}: {rule}")

    @property
    def decides(self) -> bool:
        """Whether it has a say in the verdict."""
        return not self.advisory and metric_class(self.metric).DECIDES

    @property
    def needs_floor(self) -> bool:
        """Whether it reads the champion's second answer (``shadow.noise_floor``)."""
        return metric_class(self.metric).NEEDS_FLOOR

    @property
    def needs_label(self) -> bool:
        """Whether it compares what the models said with feedback."""
        return metric_class(self.metric).NEEDS_LABEL

    def new_metric(self) -> Metric:
        """The metric, ready to read exchanges."""
        return metric_class(self.metric)(self.pattern)


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What one gate says of one challenger now. Means and differences are over units; None without any.

    ``challenger_mean`` and ``difference`` take missing answers as wrong. Each end of ``interval``, a
    confidence
    sequence of the difference, agrees with its decision: GO means that the lower one is above -margin (at
    alpha), NO-GO that the upper one is below (at alpha_no_go). ``more_units`` are about as many as are needed
    if they go on as they did, None where no decision is in sight; ``more_hours`` is None where today's rate
    is unknown too.
    """

    metric: str
    margin: float
    alpha: float
    alpha_no_go: float
    min_units: int
    units: int
    champion_mean: float | None
    challenger_mean: float | None
    difference: float | None
    interval: tuple[float, float]
    decision: Decision
    log_e_go: float
    log_e_no_go: float
    more_units: int | None
    more_hours: float | None
    missing_fraction: float | None
    advisory: bool
    nobody_right: bool
    """Labels came, but no answer of either model ever matched one; then there is no decision."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _num_groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"gates.pattern: {pattern!r}: is no regular expression: {error}") from error
