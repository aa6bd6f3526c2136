"""How long did each model take? The challenger's time is that of the lane: other load, and no client that waits."""

from __future__ import annotations

from collections.abc import Mapping

from understudy.compare.base import Pair
from understudy.types import Observation, Outcome

NAMES = {
    "end_to_end_ratio": "the challenger's time from arrival to the last token over the champion's",
    "champion_end_to_end_s": "seconds from arrival to the last token",
    "challenger_end_to_end_s": "the same of the challenger, from its turn on",
    "champion_ttft_s": "seconds to the first token; absent where it was not seen",
    "challenger_ttft_s": "the same of the challenger",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """Of answers that were finished: how long a failure took says nothing about speed."""
    if not pair.answers:
        return {}
    values = _times("champion", pair.champion) | _times("challenger", pair.challenger)
    theirs, mine = values.get("champion_end_to_end_s", 0.0), values.get("challenger_end_to_end_s", 0.0)
    return values | ({"end_to_end_ratio": mine / theirs} if theirs > 0 and mine > 0 else {})


def _times(role: str, seen: Observation) -> dict[str, float]:
    if seen.outcome is not Outcome.FINISHED or not seen.answers:
        return {}
    values = {f"{role}_end_to_end_s": seen.timings.end_to_end_s}
    ttft_s = seen.timings.ttft_s
    return values if ttft_s is None else values | {f"{role}_ttft_s": ttft_s}
