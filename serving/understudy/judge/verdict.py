"""The judge: endings and labels in, a verdict out.

Which exchanges count, and as what:

    compared          the challenger's answer is scored
    failed            missing, and the challenger's own doing: wrong
    shed, expired     missing, and Understudy's doing: wrong where GO is claimed, right where NO-GO is
    cancelled         left out: the user went away, which is decided before the challenger has answered, by
                      someone who cannot see it, so that leaving it out favours neither side
    opted out         never gets here

For bounds on what is missing see base.Reading, for units and sessions units.py. An exchange whose champion
gave no answer has no pair and counts only for ``missing``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from understudy.judge.base import is_exchange, normal
from understudy.judge.decide import decided
from understudy.judge.gates import Decision, Gate, GateVerdict
from understudy.judge.units import MAX_EXCHANGES, Entry, Units
from understudy.judge.words import gate_sentence, sentence
from understudy.types import Ending, Exchange, State


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all gates together say of one challenger, and why, in one sentence."""

    verdict: Decision
    gates: tuple[GateVerdict, ...]
    reason: str
    open_sessions: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; each gate has its own ``reason`` too."""
        gates = []
        for gate in self.gates:
            fields = asdict(gate) | {"interval": list(gate.interval), "decision": gate.decision.value}
            gates.append(fields | {"reason": gate_sentence(gate) + "."})
        return {
            "verdict": self.verdict.value,
            "gates": gates,
            "reason": self.reason,
            "open_sessions": self.open_sessions,
        }


class Judge:
    """Fed with the same events in any order it gives the same verdict: a restart replays the record into it.

    Of two labels for one exchange the later one stands, by the time of each. Only one order matters, and it is in the
    record: of two endings of one exchange (which law 4 forbids) the first. Not safe for use from several threads.

    Args:
        gates: a changed gate needs a new Judge, and is a new rollout.
        session_idle_s: a session counts once it has been quiet for so long.
        max_pending_labels: labels kept for exchanges that have not ended here; most of them were never
            sampled. The oldest go first.
        max_exchanges: of each challenger, the newest, that a label can still change (units.py).
        clock: the time now, as in ``Exchange.arrived_unix_s``.
        known_as: of a session's name; one that was recorded under a pseudonym is the same session.
    """

    def __init__(
        self,
        gates: Sequence[Gate],
        *,
        session_idle_s: float = 1800.0,
        max_pending_labels: int = 100_000,
        max_exchanges: int = MAX_EXCHANGES,
        clock: Callable[[], float] = time.time,
        known_as: Callable[[str], str] = str,
    ) -> None:
        self.gates = tuple(gates)
        self._metrics = tuple(gate.new_metric() for gate in gates)
        self._session_idle_s = session_idle_s
        self._max_pending_labels = max_pending_labels
        self._max_exchanges = max_exchanges
        self._clock = clock
        self._known_as = known_as
        self._is_over = False
        self._units: dict[str, Units] = {}
        self._labels: dict[str, str] = {}
        self._labelled_unix_s: dict[str, float] = {}
        self._pending_labels: dict[str, str] = {}

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        """One exchange reached its terminal state for ``challenger``. Keeps a few short strings of it.

        Raises:
            ValueError: the state is not terminal.
        """
        if ending.state is State.PENDING:
            raise ValueError(f"exchange {exchange.exchange_id!r} has not ended")
        if (units := self._units.get(challenger)) is None:
            units = self._units[challenger] = self._new_units()
        exchange_id = exchange.exchange_id
        if exchange_id in units:
            return
        counts = is_exchange(exchange, ending)
        kept = tuple(metric.keep(exchange, ending) if counts else None for metric in self._metrics)
        if exchange_id in self._pending_labels:
            self._labels[exchange_id] = self._pending_labels.pop(exchange_id)
        name = exchange.facts.session
        session = None if name is None else self._known_as(name)
        forgotten = units.add(exchange_id, Entry(exchange.arrived_unix_s, session, kept))
        if forgotten is not None and not any(forgotten in each for each in self._units.values()):
            self._labels.pop(forgotten, None)
            self._labelled_unix_s.pop(forgotten, None)

    def feedback(self, exchange_id: str, label: str, at_unix_s: float = 0.0) -> bool:
        """The right answer to an exchange, before or after it ended. It replaces one that was not given later.

        Returns:
            Whether it changed anything. An empty label says nothing and is ignored: a record may hold one,
            and replaying it must not fail.
        """
        label = normal(label)
        if not label or at_unix_s < self._labelled_unix_s.get(exchange_id, -math.inf):
            return False
        self._labelled_unix_s[exchange_id] = at_unix_s
        known = any(exchange_id in units for units in self._units.values())
        labels = self._labels if known else self._pending_labels
        if labels.get(exchange_id) == label:
            return False
        labels[exchange_id] = label
        for units in self._units.values():
            units.relabel(exchange_id)
        while len(self._pending_labels) > self._max_pending_labels:
            oldest = next(iter(self._pending_labels))
            del self._pending_labels[oldest], self._labelled_unix_s[oldest]
        return True

    def no_more(self) -> None:
        """No exchange will come any more: every session is complete."""
        self._is_over = True

    def settle(self) -> None:
        """Count the sessions that are complete by now; a verdict does so too, and has less to do after this."""
        for units in self._units.values():
            units.settle(math.inf if self._is_over else self._clock())

    def verdict(self, challenger: str) -> Verdict:
        """GO if every deciding gate says so, NO-GO if any does, else NOT ENOUGH DATA. Takes milliseconds."""
        units, now_unix_s = self._units.get(challenger) or self._new_units(), self._clock()
        open_sessions = units.settle(math.inf if self._is_over else now_unix_s)
        num_deciding = sum(gate.decides for gate in self.gates)
        gates = tuple(
            decided(
                gate,
                tally.readings,
                num_deciding=num_deciding,
                units_per_hour=tally.units_per_hour(now_unix_s),
            )
            for gate, tally in zip(self.gates, units.tallies, strict=True)
        )
        decision = _together([gate.decision for gate in gates if not gate.advisory])
        return Verdict(decision, gates, sentence(decision, gates, open_sessions), open_sessions)

    def _new_units(self) -> Units:
        return Units(self._metrics, self._labels, self._session_idle_s, self._max_exchanges)


def overall(verdicts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The only challenger's verdict; of several the least favourable word, with each beside it."""
    if len(verdicts) == 1:
        return dict(next(iter(verdicts.values())))
    words = {name: verdict["verdict"] for name, verdict in verdicts.items()}
    order = ("NO-GO", "NOT ENOUGH DATA", "GO")
    worst = next((word for word in order if word in words.values()), "NOT ENOUGH DATA")
    return {"verdict": worst, "by_challenger": words, "reason": "the least favourable of the challengers' verdicts"}


def _together(decisions: list[Decision]) -> Decision:
    if Decision.NO_GO in decisions:
        return Decision.NO_GO
    passed = bool(decisions) and all(decision is Decision.GO for decision in decisions)
    return Decision.GO if passed else Decision.NOT_ENOUGH_DATA
