"""Exchanges and endings as the journey would make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest

from understudy.judge.gates import Gate
from understudy.judge.verdict import Judge
from understudy.types import (
    Answer,
    Comparison,
    Ending,
    Exchange,
    Observation,
    Outcome,
    RequestFacts,
    State,
    Timings,
)

PATTERN = r"category:\s*(\w+)"


def observation(model: str, *texts: str, outcome: Outcome = Outcome.FINISHED) -> Observation:
    answers = tuple(Answer((1, 2), text, "stop") for text in texts)
    return Observation(model, outcome, (1, 2, 3), answers, Timings(0.0, 0.1, 0.2))


def exchange(
    exchange_id: str,
    *texts: str,
    session: str | None = None,
    at: float = 0.0,
    outcome: Outcome = Outcome.FINISHED,
) -> Exchange:
    tags = MappingProxyType({"session": session} if session else {})
    champion = observation("champion", *texts, outcome=outcome)
    return Exchange(exchange_id, f"req-{exchange_id}", at, RequestFacts(tags=tags), None, None, champion)


def compared(*texts: str, agreement: float = 1) -> Ending:
    comparison = Comparison({"token_agreement": agreement, "exact_match": float(agreement == 1)})
    return Ending(State.COMPARED, challenger=observation("challenger", *texts), comparison=comparison)


@dataclass
class Desk:
    """A judge, its clock, and short ways to feed it. Texts are right or wrong about the label ``refund``."""

    judge: Judge
    now: list[float]
    fed: list[Callable[[Judge], object]] = field(default_factory=list)

    def feed(self, event: Callable[[Judge], object]) -> None:
        self.fed.append(event)
        event(self.judge)

    def pair(self, name: str, champion: bool, ending: bool | State, *, label: str | None = "refund") -> None:
        self.end(exchange(name, _says(champion), at=self.now[0]), ending)
        if label is not None:
            self.label(name, label)

    def label(self, name: str, label: str = "refund") -> None:
        self.feed(lambda judge: judge.feedback(name, label))

    def end(self, one: Exchange, ending: bool | State, challenger: str = "challenger") -> None:
        done = Ending(ending, reason="queue") if isinstance(ending, State) else compared(_says(ending))
        self.feed(lambda judge: judge.ended(one, challenger, done))

    def many(self, prefix: str, count: int, champion: bool, ending: bool | State) -> None:
        for index in range(count):
            self.pair(f"{prefix}-{index}", champion, ending)


def _says(right: bool) -> str:
    return "Category: Refund" if right else "Category: other"


@pytest.fixture
def accuracy() -> Gate:
    return Gate("accuracy", 0.1, pattern=PATTERN, min_units=20)


@pytest.fixture
def new_desk() -> Callable[..., Desk]:
    """Desk(*gates): a judge with a clock that stands until it is moved."""

    def new(*gates: Gate, session_idle_s: float = 60.0) -> Desk:
        now = [1_000_000.0]
        return Desk(Judge(gates, session_idle_s=session_idle_s, clock=lambda: now[0]), now)

    return new
