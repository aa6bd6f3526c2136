"""Status and summaries laid side by side, every number already in words. For table.py and page.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.compare.ranking import HIGH_IS_WORSE
from understudy.report.cost import assumption, cost_figures
from understudy.report.coverage import coverage_figures
from understudy.report.figure import DASH, Figure, percent
from understudy.report.floor import FloorFigure
from understudy.report.numbers import FRACTIONS, number_figures
from understudy.report.summary import ChallengerSummary, Disagreement, Paired
from understudy.types import DraftCounts

NOT_ENOUGH_DATA = "NOT ENOUGH DATA"
VERDICTS = ("GO", "NO-GO", NOT_ENOUGH_DATA)
MEASURES = {"missing": "answered", "agreement": "token agreement", "agreement_above_floor": "same answer again"}
"""What a gate's means are means of, where its name does not say so."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many exchanges are in one state, why, and which share that is of what was sampled."""

    name: str
    exchanges: str
    share: str
    reasons: tuple[Count, ...] = ()


@dataclass(frozen=True, slots=True)
class GateView:
    """One gate. The numbers are for the plot, fractions; the strings are for people, in points."""

    measure: str
    decision: str
    reason: str
    advisory: bool
    units: str
    champion: str
    challenger: str
    difference: str
    interval: str
    margin: str
    confidence: str
    missing: str
    margin_fraction: float
    difference_fraction: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ChallengerView:
    """Everything there is to show of one challenger."""

    name: str
    model: str
    verdict: str
    reason: str
    gates: tuple[GateView, ...]
    figures: tuple[Figure, ...]
    assumption: str
    counts: tuple[Count, ...]
    disagreements: tuple[Disagreement, ...]


@dataclass(frozen=True, slots=True)
class ReportView:
    """The whole report."""

    champion: str
    model: str
    phase: str
    placement: str
    challengers: tuple[ChallengerView, ...]


def report_view(status: Mapping[str, Any], summaries: Sequence[ChallengerSummary]) -> ReportView:
    """``status`` as ``Server.status`` gives it. A summary without a challenger in status is shown too."""
    champion = status.get("champion") or {}
    found = {summary.name: summary for summary in summaries}
    listed = {str(one.get("name", "challenger")): one for one in status.get("challengers") or ()}
    names = [*listed, *(name for name in found if name not in listed)]
    return ReportView(
        champion=str(champion.get("name") or "champion"),
        model=str(champion.get("model") or ""),
        phase=str(status.get("phase") or "unknown"),
        placement=str(status.get("placement") or "unknown"),
        challengers=tuple(
            _challenger(name, listed.get(name, {}), found.get(name, ChallengerSummary(name)), status.get("meter") or {})
            for name in names
        ),
    )


def _challenger(
    name: str, status: Mapping[str, Any], summary: ChallengerSummary, meter: Mapping[str, Any]
) -> ChallengerView:
    verdict = status.get("verdict") or {}
    word = verdict.get("verdict")
    gates = tuple(_gate(gate) for gate in verdict.get("gates") or ())
    return ChallengerView(
        name=name,
        model=str(status.get("model") or ""),
        verdict=word if word in VERDICTS else NOT_ENOUGH_DATA,
        reason=str(verdict.get("reason") or "There is no verdict yet."),
        gates=gates,
        figures=(
            *_figures(summary, gates),
            *number_figures(summary.numbers, summary.missing),
            *divergence_figures(summary),
            *floor_figures(summary.floor),
            *coverage_figures(summary.coverage),
            *cost_figures(meter, name),
        ),
        counts=_counts(status.get("counts") or {}),
        assumption=assumption(meter, name),
        disagreements=summary.disagreements,
    )


def _gate(gate: Mapping[str, Any]) -> GateView:
    low, high = gate.get("interval") or (-1.0, 1.0)
    alpha = float(gate.get("alpha", 0.05))
    ends = {1 - alpha, 1 - float(gate.get("alpha_no_go", alpha))}
    margin = float(gate["margin"])
    decimals = 1 if margin >= 0.01 else 2 if margin >= 0.001 else 3
    return GateView(
        measure=MEASURES.get(gate["metric"], str(gate["metric"])),
        decision=str(gate.get("decision") or NOT_ENOUGH_DATA),
        reason=str(gate.get("reason") or ""),
        advisory=bool(gate.get("advisory")),
        units=number(gate.get("units", 0)),
        champion=percent(gate.get("champion_mean")),
        challenger=percent(gate.get("challenger_mean")),
        difference=points(gate.get("difference"), decimals),
        interval=f"{points(low, decimals)} to {points(high, decimals)}",
        margin=points(-margin, decimals),
        confidence=" and ".join(f"{end * 100:.4g}%" for end in sorted(ends)),
        missing=percent(gate["missing_fraction"]) if gate.get("missing_fraction") else "",
        margin_fraction=margin,
        difference_fraction=gate.get("difference"),
        low=float(low),
        high=float(high),
    )


def _figures(summary: ChallengerSummary, gates: Sequence[GateView]) -> tuple[Figure, ...]:
    tokens = f"{number(summary.shadow_tokens)} tokens" if summary.shadow_tokens is not None else ""
    both = percent(summary.champion_accuracy), percent(summary.challenger_accuracy)
    judged = any(gate.measure == "accuracy" for gate in gates)  # then it is there, with an interval
    accuracy = () if judged or both == (DASH, DASH) else (Figure("accuracy", *both, "no gate is set on it"),)
    return (
        *accuracy,
        Figure(
            "same answer",
            "",
            percent(summary.exact_match_fraction),
            f"of {number(summary.compared)} exchanges",
        ),
        Figure("token agreement", "", percent(summary.token_agreement_mean), "mean over exchanges"),
        Figure("champion's tokens", "", _nats(summary.champion_logprob_mean), "logprob under the challenger"),
        _latency("TTFT p50", summary.champion_ttft_p50_ms, summary.challenger_ttft_p50_ms),
        _latency("end to end p50", summary.champion_end_to_end_p50_ms, summary.challenger_end_to_end_p50_ms),
        _gap(summary),
        *(_paired(one) for one in summary.paired),
        Figure("shadow cost", "", _seconds(summary.shadow_busy_s), tokens),
        *_draft(summary.draft),
    )


def _gap(summary: ChallengerSummary) -> Figure:
    p95 = _milliseconds(summary.stream_gap_p95_ms)
    return Figure("stream gap p50", _milliseconds(summary.stream_gap_p50_ms), "", f"at the fork; p95 {p95}")


def _paired(one: Paired) -> Figure:
    """p50 of both, by the engines' clocks, with their p95 and the number of pairs."""
    show = UNITS[one.unit]
    said = [f"p95 {show(one.champion_p95)}, {show(one.challenger_p95)}", f"{number(one.pairs)} pairs"]
    if one.unit in ("s", "tokens/s") and one.champion_p50:
        said.insert(0, f"{one.challenger_p50 / one.champion_p50:.2f}x")
    return Figure(f"engine {one.name} p50", show(one.champion_p50), show(one.challenger_p50), "; ".join(said))


MAX_EXPONENT = 700.0
FLOOR_ROWS = {"exact_match": "same answer", "token_agreement": "token agreement"} | FRACTIONS
"""What is shown of the noise floor as fractions; the summary has every number."""


def divergence_figures(summary: ChallengerSummary) -> tuple[Figure, ...]:
    """How far the whole distributions are apart, both ways."""
    forward, backward = summary.kl_forward_mean, summary.kl_backward_mean
    if forward is None or backward is None:
        return ()
    note = f"{backward:.4g} the other way, {number(summary.divergence_exchanges)} exchanges"
    return (Figure("KL from the champion", "", f"{forward:.4g} nats", note),)


def floor_figures(figures: Sequence[FloorFigure]) -> tuple[Figure, ...]:
    """Both models beside the champion's first answer, and what is left above the noise floor."""
    known = {figure.name: figure for figure in figures}
    rows = []
    for name, title in FLOOR_ROWS.items():
        # Of twins only the second answer's: champion_X is about the first one, whoever is beside it.
        figure = known.get(f"challenger_{name}", known.get(name))
        if figure is not None:
            rows.append(_again(figure, title))
    own_tokens = known.get("champion_logprob")
    if own_tokens is not None:
        ratio = math.exp(min(-own_tokens.excess, MAX_EXPONENT))
        note = f"perplexity {ratio:.4g}x its own, {number(own_tokens.exchanges)} exchanges"
        rows.append(Figure("champion's tokens read", _nats(own_tokens.own), _nats(own_tokens.challenger), note))
    return tuple(rows)


def _again(figure: FloorFigure, title: str) -> Figure:
    """Above the floor is what is worse than the champion's second answer: less agreement, more that is cut off."""
    above = figure.excess if figure.name in HIGH_IS_WORSE else -figure.excess
    note = f"{points(above)} points above the noise floor, {number(figure.exchanges)} exchanges"
    return Figure(f"{title} again", percent(figure.own), percent(figure.challenger), note)


def _draft(draft: DraftCounts | None) -> tuple[Figure, ...]:
    """A challenger that generated plainly has no line."""
    if draft is None or not draft.proposed:
        return ()
    found = f"; found its way back {number(draft.realigned)} times of {number(draft.lost)}" if draft.lost else ""
    accepted = percent(draft.accepted / draft.proposed)
    return (Figure("drafted tokens kept", "", accepted, f"of {number(draft.proposed)}{found}"),)


def _latency(name: str, champion: float | None, challenger: float | None) -> Figure:
    ratio = f"{challenger / champion:.2f}x the champion's" if champion and challenger is not None else ""
    return Figure(name, _milliseconds(champion), _milliseconds(challenger), ratio)


def _counts(counts: Mapping[str, Any]) -> tuple[Count, ...]:
    sampled = int(counts.get("sampled") or 0)
    heads = tuple(_count(name, counts[name] or 0, 0) for name in ("offered", "sampled") if name in counts)
    states = ("pending", "compared", "shed", "failed", "expired", "cancelled")
    return heads + tuple(_count(state, counts.get(state) or 0, sampled) for state in states)


def _count(name: str, value: int | Mapping[str, int], sampled: int) -> Count:
    reasons = value if isinstance(value, Mapping) else {}
    total = value if isinstance(value, int) else sum(value.values())
    most_first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    share = percent(total / sampled) if sampled else ""
    return Count(name, number(total), share, tuple(_count(why, n, sampled) for why, n in most_first))


def number(value: float | None) -> str:
    """A count: 12,345."""
    return DASH if value is None else f"{value:,}"


def points(fraction: float | None, decimals: int = 1) -> str:
    """A difference of two fractions, in signed percentage points: +0.8."""
    if fraction is None:
        return DASH
    rounded = round(fraction * 100, decimals)
    return f"{rounded:+.{decimals}f}" if rounded else f"{0:.{decimals}f}"


def _nats(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f} nats"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


UNITS: Mapping[str, Callable[[float], str]] = {
    "s": lambda value: _milliseconds(1000 * value),
    "tokens/s": lambda value: f"{value:,.1f}/s",
    "requests": lambda value: f"{value:.1f}",
    "fraction": percent,
}


def _seconds(value: float | None) -> str:
    return DASH if value is None else f"{value:,.1f} s busy"
