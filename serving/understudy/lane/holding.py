"""What exchanges hold in memory that are yet to be taken in or met: bounded in bytes, and not only in number."""

from __future__ import annotations

import sys

from understudy.types import Exchange

EXCHANGE_BYTES = 2048
"""Of the objects around the texts and numbers."""
NUMBER_BYTES = 36
"""Of a token id or a log-probability in a tuple: 8 for its place and 28 for itself."""
OUTPUT_BYTES = 1024
"""Of one streamed output of vLLM, as the fork keeps it until the exchange is taken in."""


def held_bytes(exchange: Exchange) -> int:
    """About how much memory an exchange holds: its request's body, its texts, its token ids and log-probabilities."""
    champion = exchange.champion
    numbers = len(champion.prompt_token_ids)
    numbers += sum(len(answer.token_ids) + len(answer.logprobs or ()) for answer in champion.answers)
    texts = (exchange.facts.body, exchange.prompt_text, *(answer.text for answer in champion.answers))
    return EXCHANGE_BYTES + NUMBER_BYTES * numbers + sum(sys.getsizeof(each) for each in texts if each is not None)
