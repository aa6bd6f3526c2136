"""A verdict in one plain sentence."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.judge import metric_class
from understudy.judge.gates import Decision, GateVerdict


def sentence(decision: Decision, gates: Sequence[GateVerdict], open_sessions: int) -> str:
    """Why the verdict is what it is."""
    deciding = [gate for gate in gates if not gate.advisory]
    if not gates:
        return "No gate is configured, so nothing can be decided."
    if not deciding:
        return "Every gate is advisory, so nothing is decided."
    told = [gate for gate in deciding if gate.decision is decision]
    if decision is Decision.NOT_ENOUGH_DATA:  # the gate that will take longest
        told = [max(told, key=lambda gate: float("inf") if gate.more_units is None else gate.more_units)]
    said = "; ".join(gate_sentence(gate) for gate in told)
    waiting = decision is Decision.NOT_ENOUGH_DATA and open_sessions
    still_open = "1 session is" if open_sessions == 1 else f"{open_sessions:,} sessions are"
    return f"{said}; {still_open} still open." if waiting else f"{said}."


def gate_sentence(gate: GateVerdict) -> str:
    """What one gate says, without a full stop."""
    if gate.decision is Decision.GO:
        shortfall = _shortfall(gate, gate.interval[0], "at most")
        return f"{gate.metric}: {shortfall} ({_points(gate.margin)} allowed)"
    if gate.decision is Decision.NO_GO:
        shortfall = _shortfall(gate, gate.interval[1], "at least")
        return f"{gate.metric}: {shortfall} ({_points(gate.margin)} allowed)"
    if gate.units == 0:
        what = "labelled exchange" if metric_class(gate.metric).NEEDS_LABEL else "exchange"
        return f"{gate.metric}: no {what} has been judged yet"
    units = "1 unit" if gate.units == 1 else f"{gate.units:,} units"
    if gate.nobody_right:
        return f"{gate.metric}: in {units} neither model was ever right, so check labels and pattern"
    return f"{gate.metric}: {units} are not enough yet; {_wait(gate)}"


def _wait(gate: GateVerdict) -> str:
    if gate.more_units is None:
        return "the difference is too close to the margin to say how many more it takes"
    more = f"about {_two_digits(gate.more_units):,} more"
    if gate.more_hours is None:
        return more
    hours = gate.more_hours
    lasting = (
        f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
    )
    return f"{more}, {lasting} at today's rate"


def _shortfall(gate: GateVerdict, difference: float, bound: str) -> str:
    metric = metric_class(gate.metric)
    if difference > 0:
        return metric.BETTER.format(bound="at least" if bound == "at most" else "at most", points=_points(difference))
    return metric.WORSE.format(bound=bound, points=_points(difference))


def _points(difference: float) -> str:
    return f"{abs(difference) * 100:.3g}"


def _two_digits(number: int) -> int:
    """An estimate is not known to more digits than these, and never rounded down to nothing."""
    step: int = 10 ** max(len(str(number)) - 2, 0)
    return -(-number // step) * step
