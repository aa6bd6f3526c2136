"""A user's own comparator: any Python callable, named in the configuration.

    compare:
      callables:
        tone: mypackage.tone:distance

    def distance(champion: str, challenger: str, case: Case) -> float: ...

It is called once for each pair of answers, in a thread of its own, one exchange at a time, and gives a number;
``custom_tone`` is their mean.
Where an answer is missing it is not called, and the number is absent: only its author knows its worst value. The same
holds where it raises, gives no finite number, or takes longer than 5 s (all counted in status, under ``swallowed``).
It must have no side effects: ``case.dry_run`` is always true, and a replay calls it again for the same exchange.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from understudy.compare.base import Pair
from understudy.compare.pairs import has_missing
from understudy.errors import ConfigError, UnderstudyError

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Case:
    """What a callable may want to know beside the two texts. ``body`` is the request's, where it was kept."""

    exchange_id: str
    prompt: str | None
    tags: Mapping[str, str]
    body: Mapping[str, Any] | None
    dry_run: bool = True


UserFunction = Callable[[str, str, Case], float]


class CallableBroken(UnderstudyError):
    """A user's callable took too long, is still at work on an earlier exchange, or gave no number."""


class UserComparator:
    """A Comparator around one callable.

    Raises:
        ConfigError: it cannot be imported.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = f"custom_{name}"
        self.NAMES = {self.name: f"what {path} gives, the mean over the answers"}
        self._function = _imported(name, path)
        self._busy = threading.Lock()

    def compare(self, pair: Pair) -> Mapping[str, float]:
        """Raises what the callable raises, or CallableBroken."""
        if not pair.answers or any(has_missing(answers) for answers in pair.answers):
            return {}
        facts = pair.exchange.facts
        case = Case(pair.exchange.exchange_id, pair.exchange.prompt_text, facts.tags, pair.asked.body)
        limit = pair.options.max_characters
        texts = [(theirs.text[:limit], mine.text[:limit]) for theirs, mine in pair.answers]
        values = self._in_thread(lambda: [self._number(self._function(*each, case)) for each in texts])
        return {self.name: sum(values) / len(values)}

    def _in_thread(self, work: Callable[[], list[float]]) -> list[float]:
        """A daemon thread, so that one that hangs neither blocks the others nor the server's end."""
        if not self._busy.acquire(blocking=False):  # exchanges come one at a time: it is one that was given up
            raise CallableBroken(f"{self.name} is still at work on an earlier exchange")
        done, outcome = threading.Event(), _Outcome()

        def run() -> None:
            try:
                outcome.values = work()
            except Exception as fault:  # noqa: BLE001  handed to the waiting side, which raises it
                outcome.fault = fault
            finally:
                self._busy.release()
                done.set()

        threading.Thread(target=run, daemon=True, name=f"compare-{self.name}").start()
        if not done.wait(TIMEOUT_S):
            raise CallableBroken(f"{self.name} took longer than {TIMEOUT_S:g} s")
        if outcome.fault is not None:
            raise outcome.fault
        return outcome.values

    def _number(self, given: object) -> float:
        if isinstance(given, bool | int | float):
            return float(given)
        raise CallableBroken(f"{self.name} gave {type(given).__name__}, not a number")


class _Outcome:
    """What a thread hands back."""

    values: list[float]
    fault: Exception | None = None


def _imported(name: str, path: str) -> UserFunction:
    module, _, attribute = path.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as fault:
        raise ConfigError(f"compare.callables.{name}: {path!r} cannot be imported: {fault}") from fault
    if not callable(function):
        raise ConfigError(f"compare.callables.{name}: {path!r} is {type(function).__name__}, not a function")
    found: UserFunction = function
    return found
