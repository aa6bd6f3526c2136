"""Keeps the figures of the report while exchanges end: sums, medians over the newest, the worst disagreements.

Memory is bounded: MAX_TIMES times and MAX_WORST pairs of answers for each challenger. Rebuilt from the record at
a start, like the verdict.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from understudy.judge.base import is_exchange, is_missing
from understudy.meter.gaps import quantile_s
from understudy.record.privacy import FULL, Privacy
from understudy.report.coverage import CoverageFigures, Groups
from understudy.report.floor import FloorFigures
from understudy.report.numbers import NumberFigures
from understudy.report.paired import PairedFigures
from understudy.report.summary import ChallengerSummary, Disagreement
from understudy.types import DraftCounts, Ending, Exchange, State

MAX_TIMES = 10_000
MAX_WORST = 10
MAX_PROMPT_CHARACTERS = 2_000


class Sums:
    """A mean, one value at a time."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def add(self, value: float | None) -> None:
        """None is a figure that could not be computed, and is left out."""
        if value is not None:
            self.total += value
            self.count += 1

    @property
    def mean(self) -> float | None:
        """None without values."""
        return self.total / self.count if self.count else None


def _times() -> deque[float]:
    return deque(maxlen=MAX_TIMES)


@dataclass
class Tally:
    """The figures of one challenger so far."""

    name: str
    compared: int = 0
    exact: Sums = field(default_factory=Sums)
    agreement: Sums = field(default_factory=Sums)
    logprob: Sums = field(default_factory=Sums)
    kl_forward: Sums = field(default_factory=Sums)
    kl_backward: Sums = field(default_factory=Sums)
    missing: int = 0
    tokens: int = 0
    draft: DraftCounts | None = None
    champion_ttft_ms: deque[float] = field(default_factory=_times)
    champion_ms: deque[float] = field(default_factory=_times)
    challenger_ttft_ms: deque[float] = field(default_factory=_times)
    challenger_ms: deque[float] = field(default_factory=_times)
    paired: PairedFigures = field(default_factory=PairedFigures)
    floor: FloorFigures = field(default_factory=FloorFigures)
    numbers: NumberFigures = field(default_factory=NumberFigures)
    coverage: CoverageFigures = field(default_factory=lambda: CoverageFigures(Groups()))
    gaps: Counter[int] = field(default_factory=Counter)
    worst: list[tuple[float, str, Disagreement]] = field(default_factory=list)

    def add(self, exchange: Exchange, ending: Ending) -> None:
        """One exchange that ended. Figures are of what was compared; of the rest, what is owed is counted."""
        self.missing += is_exchange(exchange, ending) and is_missing(ending)
        self.coverage.add(exchange, ending)
        if ending.state is not State.COMPARED or ending.challenger is None or ending.comparison is None:
            return
        values, challenger = ending.comparison.values, ending.challenger
        self.compared += 1
        self.floor.add(ending)
        self.numbers.add(values)
        self.exact.add(values.get("exact_match"))
        self.agreement.add(values.get("token_agreement"))
        self.logprob.add(values.get("champion_logprob"))
        self.kl_forward.add(values.get("kl_forward"))
        self.kl_backward.add(values.get("kl_backward"))
        self.tokens += challenger.num_generated_tokens + int(values.get("scored_tokens", 0))
        if challenger.draft is not None:
            self.draft = challenger.draft if self.draft is None else self.draft + challenger.draft
        ttft_s = exchange.champion.timings.ttft_s
        if ttft_s is not None:
            self.champion_ttft_ms.append(1000 * ttft_s)
        self.champion_ms.append(1000 * exchange.champion.timings.end_to_end_s)
        for bucket, count in exchange.champion.measured.gaps:
            self.gaps[bucket] += count
        if challenger.answers:
            if challenger.timings.ttft_s is not None:
                self.challenger_ttft_ms.append(1000 * challenger.timings.ttft_s)
            self.paired.add(exchange, challenger)
            self.challenger_ms.append(1000 * challenger.timings.end_to_end_s)
            self._rank(exchange, ending, values.get("token_agreement"))

    def _rank(self, exchange: Exchange, ending: Ending, agreement: float | None) -> None:
        """Keep the MAX_WORST least agreeing pairs of first answers."""
        assert ending.challenger is not None
        if agreement is None or agreement >= 1.0 or not exchange.champion.answers:
            return
        if len(self.worst) == MAX_WORST and -agreement <= self.worst[0][0]:
            return
        one = Disagreement(
            exchange_id=exchange.exchange_id,
            prompt=None if exchange.prompt_text is None else exchange.prompt_text[:MAX_PROMPT_CHARACTERS],
            champion_text=exchange.champion.answers[0].text,
            challenger_text=ending.challenger.answers[0].text,
            token_agreement=agreement,
        )
        keep = heapq.heappush if len(self.worst) < MAX_WORST else heapq.heapreplace
        keep(self.worst, (-agreement, exchange.exchange_id, one))

    def summary(self, busy_s: float | None) -> ChallengerSummary:
        """The figures as the report shows them."""
        gaps = tuple(sorted(self.gaps.items()))
        return ChallengerSummary(
            name=self.name,
            compared=self.compared,
            missing=self.missing,
            exact_match_fraction=self.exact.mean,
            token_agreement_mean=self.agreement.mean,
            champion_logprob_mean=self.logprob.mean,
            champion_ttft_p50_ms=_median(self.champion_ttft_ms),
            champion_end_to_end_p50_ms=_median(self.champion_ms),
            challenger_ttft_p50_ms=_median(self.challenger_ttft_ms),
            challenger_end_to_end_p50_ms=_median(self.challenger_ms),
            kl_forward_mean=self.kl_forward.mean,
            kl_backward_mean=self.kl_backward.mean,
            divergence_exchanges=self.kl_forward.count,
            floor=self.floor.figures(),
            numbers=self.numbers.figures(),
            coverage=self.coverage.figures(),
            shadow_busy_s=busy_s,
            shadow_tokens=self.tokens,
            paired=self.paired.figures(),
            stream_gap_p50_ms=_ms(quantile_s(gaps, 0.5)),
            stream_gap_p95_ms=_ms(quantile_s(gaps, 0.95)),
            draft=self.draft,
            disagreements=tuple(one for _, _, one in sorted(self.worst, key=lambda item: (-item[0], item[1]))),
        )


class Tallies:
    """A Tally for each challenger that was heard of. ``privacy``: by what rule tenants are recorded."""

    def __init__(self, privacy: Privacy = FULL) -> None:
        self._by_name: dict[str, Tally] = {}
        self._groups = Groups(privacy)

    def ended(self, exchange: Exchange, challenger: str, ending: Ending) -> None:
        """One exchange ended for one challenger."""
        if (tally := self._by_name.get(challenger)) is None:
            coverage = CoverageFigures(self._groups)
            tally = self._by_name[challenger] = Tally(challenger, coverage=coverage)
        tally.add(exchange, ending)

    def drafts(self) -> dict[str, DraftCounts]:
        """What became of the drafts, of each challenger that had some."""
        return {name: tally.draft for name, tally in self._by_name.items() if tally.draft is not None}

    def summaries(self, busy_s: Mapping[str, float | None]) -> list[ChallengerSummary]:
        """For the challengers named, with the device seconds each has used since the start, where known."""
        return [self._by_name.get(name, Tally(name)).summary(used) for name, used in busy_s.items()]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _median(times: Iterable[float]) -> float | None:
    values = list(times)
    return median(values) if values else None
