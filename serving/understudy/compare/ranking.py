"""Which exchanges are the worst by a number? For ``understudy exchanges --worst`` and the report."""

from __future__ import annotations

import math

from understudy.compare import COMPARATORS, load
from understudy.errors import ConfigError

HIGH_IS_WORSE = frozenset(
    {
        "champion_truncated", "challenger_truncated", "champion_missing", "challenger_missing",
        "champion_refused", "challenger_refused", "champion_end_to_end_s", "challenger_end_to_end_s",
        "champion_ttft_s", "challenger_ttft_s", "champion_cost_usd", "challenger_cost_usd",
        "champion_tokens", "challenger_tokens", "champion_prompt_tokens", "challenger_prompt_tokens",
        "end_to_end_ratio", "cost_ratio", "perplexity_ratio", "mean_entropy", "hellinger", "ruled_out_tokens",
    }
)  # fmt: skip
FAR_FROM_ONE_IS_WORSE = frozenset({"length_ratio", "tokens_ratio"})


def number_of(wanted: str) -> str:
    """The number meant by ``COMPARATOR``, ``COMPARATOR.number`` or ``number``; of a comparator its headline.

    Raises:
        ConfigError: there is none; the message lists what there is.
    """
    comparator, _, number = wanted.partition(".")
    if comparator in COMPARATORS:
        names = list(load(comparator).NAMES)
        if not number:
            return names[0]
        if number in names:
            return number
        raise ConfigError(f"{wanted!r}: {comparator} has {', '.join(names)}")
    known = {name for each in COMPARATORS for name in load(each).NAMES}
    if wanted in known or wanted.startswith("custom_"):
        return wanted
    raise ConfigError(f"{wanted!r} is no comparator or number; comparators are {', '.join(sorted(COMPARATORS))}")


def badness(number: str, value: float) -> float:
    """The higher the worse."""
    if number in FAR_FROM_ONE_IS_WORSE:
        return abs(math.log(value)) if value > 0 else math.inf
    return value if number in HIGH_IS_WORSE or number.startswith(("kl_", "hellinger")) else -value
