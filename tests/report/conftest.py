"""A status as the server gives it, with a verdict from a real judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from understudy.judge.gates import Gate
from understudy.judge.verdict import Judge
from understudy.report.summary import ChallengerSummary, Disagreement
from understudy.types import (
    Answer,
    Comparison,
    DraftCounts,
    Ending,
    Exchange,
    Observation,
    Outcome,
    RequestFacts,
    State,
    Timings,
)

GATES = (Gate("accuracy", 0.1, pattern="(.+)"), Gate("missing", 0.2), Gate("agreement", 0.1))
NEW_STATUS = Callable[..., dict[str, Any]]


def observation(text: str) -> Observation:
    return Observation("m", Outcome.FINISHED, (1,), (Answer((1,), text, "stop"),), Timings(0.0, 0.1, 0.2))


@pytest.fixture
def verdicts() -> dict[str, dict[str, Any]]:
    """By challenger: one that is equal (GO), one that is never right (NO-GO), one with three units."""
    judge = Judge(GATES, clock=lambda: 7200.0)
    for name, answer, count in (("equal", "yes", 300), ("worse", "no", 300), ("young", "yes", 3)):
        for index in range(count):
            exchange_id = f"{name}-{index}"
            exchange = Exchange(exchange_id, exchange_id, 0.0, RequestFacts(), None, None, observation("yes"))
            ending = Ending(
                State.COMPARED,
                challenger=observation(answer),
                comparison=Comparison({"token_agreement": float(answer == "yes")}),
            )
            judge.ended(exchange, name, ending)
            judge.feedback(exchange_id, "yes")
    return {name: judge.verdict(name).as_dict() for name in ("equal", "worse", "young")}


@pytest.fixture
def new_status(verdicts: dict[str, dict[str, Any]]) -> NEW_STATUS:
    """Status of the named challengers."""

    def new(*names: str) -> dict[str, Any]:
        counts = {
            "offered": 1_234_567,
            "sampled": 1_000,
            "pending": 1,
            "compared": 890,
            "shed": {"queue_full": 80, "deadline": 20},
            "failed": {"engine_dead": 6},
            "expired": 2,
            "cancelled": 1,
        }
        listed = [{"name": name, "model": "tiny", "counts": counts, "verdict": verdicts[name]} for name in names]
        champion = {"name": "lead", "model": "Qwen/Qwen2.5-0.5B"}
        return {"phase": "shadowing", "placement": "shared", "champion": champion, "challengers": listed}

    return new


@pytest.fixture
def summary() -> Callable[..., ChallengerSummary]:
    """A summary with every figure known."""

    def new(name: str, *disagreements: Disagreement) -> ChallengerSummary:
        return ChallengerSummary(
            name=name,
            compared=890,
            exact_match_fraction=0.6125,
            token_agreement_mean=0.9341,
            champion_ttft_p50_ms=41.25,
            challenger_ttft_p50_ms=66.0,
            champion_end_to_end_p50_ms=812.0,
            challenger_end_to_end_p50_ms=1430.4,
            shadow_busy_s=733.2,
            shadow_tokens=12_345_678,
            draft=DraftCounts(proposed=20_000, accepted=15_000, lost=30, realigned=28),
            champion_logprob_mean=-0.213,
            disagreements=disagreements,
        )

    return new
