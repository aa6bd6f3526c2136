"""Whose exchanges were compared and whose were not, by prompt length, tool use and tenant: bias of the sample shows.

What is shed, fails or expires is no random part of the traffic. A queue that is full sheds at the peak, when one tenant
sends its batch; a deadline expires long prompts first. A verdict over the rest then says little of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from understudy.judge.base import is_exchange, is_missing
from understudy.report.figure import Figure, percent
from understudy.types import Ending, Exchange

LENGTHS = (256, 1024, 4096, 16384)
"""Bounds of the groups, in prompt tokens."""
TENANT_TAG = "tenant"
MAX_TENANTS = 100
MAX_TENANTS_SHOWN = 5
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


class CoverageFigures:
    """The counts of one challenger. Memory: two numbers for each group, of at most MAX_TENANTS tenants."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}
        self._num_tenants = 0

    def add(self, exchange: Exchange, ending: Ending) -> None:
        """Count one exchange that ended, where the challenger owed an answer."""
        if not is_exchange(exchange, ending):
            return
        compared = not is_missing(ending)
        for kind, group in groups_of(exchange):
            place = (kind, group)
            if kind == TENANT_TAG and place not in self._counts:
                self._num_tenants += 1
                if self._num_tenants > MAX_TENANTS:
                    place = (kind, OTHERS)
            seen, kept = self._counts.get(place, (0, 0))
            self._counts[place] = (seen + 1, kept + compared)

    def figures(self) -> tuple[Coverage, ...]:
        """Every group that was met."""
        return tuple(Coverage(*place, *counts) for place, counts in self._counts.items())


def groups_of(exchange: Exchange) -> Iterator[tuple[str, str]]:
    """(kind, group) of each kind."""
    yield "prompt", length_group(len(exchange.champion.prompt_token_ids))
    yield "tools", tools_group(exchange.facts.body)
    yield TENANT_TAG, exchange.facts.tags.get(TENANT_TAG) or UNNAMED


def length_group(num_tokens: int) -> str:
    """The words for a prompt length; of none at all (kept without its text, or not kept) it is not known."""
    if not num_tokens:
        return UNKNOWN
    bound = next((bound for bound in LENGTHS if num_tokens <= bound), None)
    return f"over {LENGTHS[-1]:,} tokens" if bound is None else f"up to {bound:,} tokens"


class _Asked(msgspec.Struct):
    tools: Any = None
    functions: Any = None


_ASKED = msgspec.json.Decoder(_Asked)


def tools_group(body: bytes | None) -> str:
    """Whether the request offered tools. Only a body that may is parsed: this runs beside the answers."""
    if body is None:
        return UNKNOWN
    if b'"tools"' not in body and b'"functions"' not in body:
        return "without"
    try:
        asked = _ASKED.decode(body)
    except ValueError:  # not what vLLM took it for: half a surrogate pair, another encoding
        return UNKNOWN
    return "with" if asked.tools or asked.functions else "without"


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
