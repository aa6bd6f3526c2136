"""The figures of one challenger that status does not have. Whoever reads the record fills them in."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.report.coverage import Coverage
from understudy.report.floor import FloorFigure
from understudy.report.numbers import NumberFigure
from understudy.types import DraftCounts


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Two answers to one exchange that differ. ``prompt`` is None where the record was redacted."""

    exchange_id: str
    prompt: str | None
    champion_text: str
    challenger_text: str
    token_agreement: float | None


@dataclass(frozen=True, slots=True)
class Paired:
    """One figure of both models over the same exchanges (paired.py). ``unit`` is s, tokens/s, requests or fraction."""

    name: str
    unit: str
    pairs: int
    champion_p50: float
    champion_p95: float
    challenger_p50: float
    challenger_p95: float


@dataclass(frozen=True, slots=True)
class ChallengerSummary:
    """Fractions in [0, 1]; None where a figure is not known, which is shown as a dash and never as 0.

    Attributes:
        name: as in status.
        compared: exchanges behind these figures.
        missing: exchanges that the challenger left unanswered; they are in none of these figures.
        exact_match_fraction: answers whose token ids are all the champion's.
        token_agreement_mean: equal positions over the longer answer.
        champion_accuracy: over labelled exchanges; shown where no accuracy gate is set.
        challenger_accuracy: over the same exchanges.
        champion_ttft_p50_ms: median time to first token.
        challenger_ttft_p50_ms: the same, under the load of the lane.
        champion_end_to_end_p50_ms: median time from arrival to the last token.
        challenger_end_to_end_p50_ms: the same, under the load of the lane.
        shadow_busy_s: device seconds that the challenger used.
        shadow_tokens: tokens that it scored or generated.
        draft: what became of the champion's answers as drafts of its own; None where it generated plainly.
        champion_logprob_mean: mean log-probability, nats a token, of the champion's tokens under the
            challenger.
        kl_forward_mean: KL(champion || challenger), nats a token, where whole distributions were compared.
        kl_backward_mean: KL(challenger || champion).
        divergence_exchanges: behind these two.
        floor: both models beside the champion's first answer, where the champion answered twice.
        paired: the engines' own times over the same exchanges.
        stream_gap_p50_ms: between two outputs of the champion's streams, at the fork.
        stream_gap_p95_ms: the same, not exceeded by 95%.
        numbers: what the comparators said, on average.
        coverage: how many exchanges of each kind of request were compared.
        disagreements: the worst ones, worst first.
    """

    name: str
    compared: int = 0
    missing: int = 0
    exact_match_fraction: float | None = None
    token_agreement_mean: float | None = None
    champion_accuracy: float | None = None
    challenger_accuracy: float | None = None
    champion_ttft_p50_ms: float | None = None
    challenger_ttft_p50_ms: float | None = None
    champion_end_to_end_p50_ms: float | None = None
    challenger_end_to_end_p50_ms: float | None = None
    shadow_busy_s: float | None = None
    shadow_tokens: int | None = None
    draft: DraftCounts | None = None
    champion_logprob_mean: float | None = None
    kl_forward_mean: float | None = None
    kl_backward_mean: float | None = None
    divergence_exchanges: int = 0
    floor: tuple[FloorFigure, ...] = ()
    paired: tuple[Paired, ...] = ()
    stream_gap_p50_ms: float | None = None
    stream_gap_p95_ms: float | None = None
    numbers: tuple[NumberFigure, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
