"""Whose exchanges were compared and whose were not, by prompt length, tool use and tenant: bias of the sample shows.

What is shed, fails or expires is no random part of the traffic. A queue that is full sheds at the peak, when one tenant
sends its batch; a deadline expires long prompts first. A verdict over the rest then says little of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.judge.base import is_exchange, is_missing
from understudy.record.chat import offers_tools
from understudy.record.privacy import FULL, Privacy
from understudy.report.figure import Figure, percent
from understudy.types import Ending, Exchange, RequestFacts

LENGTHS = (256, 1024, 4096, 16384)
"""Bounds of the groups, in prompt tokens."""
TENANT_TAG = "tenant"
MAX_TENANTS = 100
MAX_TENANTS_SHOWN = 5
MAX_NEWEST = 256  # under way for a few challengers at once
OTHERS = "others"
UNNAMED = "not named"
UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Coverage:
    """One group of exchanges. ``kind`` is prompt, tools or tenant; ``compared`` of ``exchanges`` were."""

    kind: str
    group: str
    exchanges: int
    compared: int

    @property
    def fraction(self) -> float:
        """Of its exchanges, compared."""
        return self.compared / self.exchanges


class Groups:
    """The groups of exchanges, looked for once for all challengers: it parses, and runs beside the answers.

    A tenant is one group under its name and its recorded pseudonym, shown as it is recorded.

    Memory: at most MAX_TENANTS names, and the groups of the MAX_NEWEST exchanges that ended last.
    """

    def __init__(self, privacy: Privacy = FULL) -> None:
        self._privacy = privacy
        self._tenants: dict[str, str] = {}  # by what it is known as: as it is shown
        self._newest: dict[str, tuple[tuple[str, str], ...]] = {}

    def of(self, exchange: Exchange) -> tuple[tuple[str, str], ...]:
        """(kind, group) of each kind."""
        found = self._newest.get(exchange.exchange_id)
        if found is None:
            found = self._newest[exchange.exchange_id] = (
                ("prompt", length_group(exchange.champion.num_prompt_tokens)),
                ("tools", tools_group(exchange.facts)),
                (TENANT_TAG, self._tenant(exchange.facts.tags.get(TENANT_TAG))),
            )
            if len(self._newest) > MAX_NEWEST:
                del self._newest[next(iter(self._newest))]
        return found

    def _tenant(self, name: str | None) -> str:
        if not name:
            return UNNAMED
        known_as = self._privacy.known_as(name)
        if known_as not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                return OTHERS
            self._tenants[known_as] = self._privacy.tag(name)  # redactors run once for each
        return self._tenants[known_as]


class CoverageFigures:
    """The counts of one challenger. Memory: two numbers for each group."""

    def __init__(self, groups: Groups) -> None:
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}
        self._groups = groups

    def add(self, exchange: Exchange, ending: Ending) -> None:
        """Count one exchange that ended, where the challenger owed an answer."""
        if not is_exchange(exchange, ending):
            return
        compared = not is_missing(ending)
        for place in self._groups.of(exchange):
            seen, kept = self._counts.get(place, (0, 0))
            self._counts[place] = (seen + 1, kept + compared)

    def figures(self) -> tuple[Coverage, ...]:
        """Every group that was met."""
        return tuple(Coverage(*place, *counts) for place, counts in self._counts.items())


def length_group(num_tokens: int) -> str:
    """The words for a prompt length; of none at all (nothing was kept) it is not known."""
    if not num_tokens:
        return UNKNOWN
    bound = next((bound for bound in LENGTHS if num_tokens <= bound), None)
    return f"over {LENGTHS[-1]:,} tokens" if bound is None else f"up to {bound:,} tokens"


def tools_group(facts: RequestFacts) -> str:
    """Whether the request offered tools."""
    offers = facts.offers_tools if facts.body is None else offers_tools(facts.body)
    return UNKNOWN if offers is None else "with" if offers else "without"


def coverage_figures(found: Sequence[Coverage]) -> tuple[Figure, ...]:
    """Rows for each kind of which there are several groups, least compared first; none where all was compared."""
    if all(one.compared == one.exchanges for one in found):
        return ()
    rows = []
    for kind in ("prompt", "tools", TENANT_TAG):
        groups = sorted((one for one in found if one.kind == kind), key=lambda one: (one.fraction, one.group))
        if len(groups) > 1:
            shown = groups if kind != TENANT_TAG else groups[:MAX_TENANTS_SHOWN]
            rows += [_row(one, len(groups) - len(shown) if one is shown[-1] else 0) for one in shown]
    return tuple(rows)


def _row(one: Coverage, num_more: int) -> Figure:
    note = f"of {one.exchanges:,} exchanges" + (f"; {num_more:,} more tenants, more of each" if num_more else "")
    return Figure(f"compared, {one.kind} {one.group}", "", percent(one.fraction), note)
