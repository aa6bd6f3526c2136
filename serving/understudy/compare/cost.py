"""What would this exchange cost at token prices (``compare.token_prices``, by the model's name)?

For models that are, or will be, paid by the token. What a device of one's own costs is a matter of its time, not of
tokens, and is not computed here.
"""

from __future__ import annotations

from collections.abc import Mapping

from understudy.compare.base import Pair
from understudy.types import Observation

NAMES = {
    "cost_ratio": "the challenger's cost over the champion's; absent where either is nothing",
    "champion_cost_usd": "USD for the champion's prompt and generated tokens, also those of an answer that failed",
    "challenger_cost_usd": "the same of the challenger's",
}


def compare(pair: Pair) -> Mapping[str, float]:
    """Only for models whose prices are given."""
    if not pair.answers:
        return {}
    prices = pair.options.token_prices
    values = _cost("champion", pair.champion, prices) | _cost("challenger", pair.challenger, prices)
    theirs, mine = values.get("champion_cost_usd", 0.0), values.get("challenger_cost_usd", 0.0)
    return values | ({"cost_ratio": mine / theirs} if theirs > 0 and mine > 0 else {})


def _cost(role: str, seen: Observation, prices: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    usd = tokens_usd(seen, prices)
    return {} if usd is None else {f"{role}_cost_usd": usd}


def tokens_usd(seen: Observation, prices: Mapping[str, Mapping[str, float]]) -> float | None:
    """The price of its prompt and its answers by the token; None for a model without prices."""
    if seen.model not in prices:
        return None
    price = prices[seen.model]
    return (len(seen.prompt_token_ids) * price["input"] + seen.num_generated_tokens * price["output"]) / 1e6
