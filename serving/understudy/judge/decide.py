"""How one gate decides, given the readings of its units.

GO of a rollout needs every deciding gate, each at its full alpha (an intersection-union test: an unfit
challenger fails at least one, and passes that one with probability at most alpha). NO-GO is any of J gates,
so each is tried at alpha / J (Bonferroni).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from math import fsum

from understudy.judge import metric_class
from understudy.judge.base import Reading
from understudy.judge.evidence import Evidence
from understudy.judge.gates import Decision, Gate, GateVerdict


def decided(
    gate: Gate, readings: Mapping[Reading, int], *, num_deciding: int, units_per_hour: float | None
) -> GateVerdict:
    """What ``gate`` says.

    GO is tested on the worst case of missing answers, NO-GO on the best case: see Reading.

    Args:
        gate: the gate.
        readings: how often each reading of a unit occurred; this is all it depends on.
        num_deciding: J, the deciding gates of the rollout.
        units_per_hour: today's rate, None where it is unknown.
    """
    worst = _evidence(gate, {reading: reading.low for reading in readings}, readings)
    best = _evidence(gate, {reading: reading.high for reading in readings}, readings)
    alpha_no_go = gate.alpha / max(num_deciding, 1)
    log_e_go, log_e_no_go = worst.log_e_go(gate.margin), best.log_e_no_go(gate.margin)
    units = worst.num_units
    decision = Decision.NOT_ENOUGH_DATA
    if units >= gate.min_units and not _nobody_right(gate, readings):
        if log_e_go >= math.log(1 / gate.alpha):
            decision = Decision.GO
        elif log_e_no_go >= math.log(1 / alpha_no_go):
            decision = Decision.NO_GO
    more_units: int | None = 0
    if decision is Decision.NOT_ENOUGH_DATA:
        more_units = _more_units(gate, worst, best, alpha_no_go)
    return GateVerdict(
        metric=gate.metric,
        margin=gate.margin,
        alpha=gate.alpha,
        alpha_no_go=alpha_no_go,
        min_units=gate.min_units,
        units=units,
        champion_mean=_mean({reading: reading.champion for reading in readings}, readings),
        challenger_mean=_mean({reading: reading.low for reading in readings}, readings),
        difference=worst.mean,
        interval=(worst.lower_end(gate.alpha), best.upper_end(alpha_no_go)),
        decision=decision,
        log_e_go=log_e_go,
        log_e_no_go=log_e_no_go,
        more_units=more_units,
        more_hours=_hours(more_units, units_per_hour),
        missing_fraction=_mean({reading: reading.missing for reading in readings}, readings),
        advisory=not gate.decides,
        nobody_right=units > 0 and _nobody_right(gate, readings),
    )


def _evidence(gate: Gate, scores: Mapping[Reading, float], readings: Mapping[Reading, int]) -> Evidence:
    differences: Counter[float] = Counter()
    for reading, score in scores.items():
        differences[score - reading.champion] += readings[reading]
    return Evidence.of(differences, highest=metric_class(gate.metric).HIGHEST)


def _mean(scores: Mapping[Reading, float], readings: Mapping[Reading, int]) -> float | None:
    total = sum(readings.values())
    return fsum(score * readings[reading] for reading, score in scores.items()) / total if total else None


def _nobody_right(gate: Gate, readings: Mapping[Reading, int]) -> bool:
    """Labels or pattern must be wrong; without this, equal failure would look like equal quality and pass."""
    return metric_class(gate.metric).NEEDS_LABEL and all(
        reading.champion == 0 and reading.low == 0 for reading, count in readings.items() if count
    )


def _more_units(gate: Gate, worst: Evidence, best: Evidence, alpha_no_go: float) -> int | None:
    waits = worst.units_to_go(gate.margin, gate.alpha), best.units_to_no_go(gate.margin, alpha_no_go)
    in_sight = [wait for wait in waits if wait is not None]
    return max(min(in_sight), gate.min_units - worst.num_units) if in_sight else None


def _hours(more_units: int | None, units_per_hour: float | None) -> float | None:
    if more_units == 0:
        return 0.0
    return more_units / units_per_hour if more_units and units_per_hour else None
