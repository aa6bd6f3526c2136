"""What one exchange took of one model's device: memory, device seconds and money, made of what its engine measured.

Nothing measures a request by itself; these are shares, by rules that add up:

    memory   KV cache goes by blocks. A request holds ceil(tokens / block) of them, from its first step to its last
             token: those of its prompt, then one more each time its answer fills one. Blocks that several requests
             hold at a time through the prefix cache count for each of them, and slots for drafted tokens do not count.
             Only for models with one kind of KV cache, that of full attention: windows and states need less
    device   each step's seconds, split evenly over the requests in it (traffic.py), times the devices of a step. So the
             shares of all requests, a challenger's scoring passes among them, are the busy seconds. A long prompt in a
             step with short ones has too little of it
    money    device seconds by their price, tokens by theirs. Energy is left out: counters are too coarse for a request
             (attribution.py splits it over seconds), and its price is in the meter's figures only
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from understudy.compare.cost import tokens_usd
from understudy.config import Prices
from understudy.types import Observation, Taken

NO_PRICES = Prices()


@dataclass(frozen=True, slots=True)
class Scale:
    """What weighs the exchanges of one model.

    Attributes:
        prices: of devices.
        token_prices: by model.
        num_devices: that each step takes.
        block_tokens: tokens of a block of its KV cache; None: not known, or there are several kinds of it.
        block_bytes: bytes of one, over all devices.
    """

    prices: Prices = NO_PRICES
    token_prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    num_devices: int = 1
    block_tokens: int | None = None
    block_bytes: int | None = None

    def weigh(self, seen: Observation) -> Taken:
        """Its share; a model that did not see the request took nothing that is known."""
        device_s = self._device_s(seen)
        price = self.prices.usd_per_device_hour
        return Taken(
            kv_peak_bytes=self._kv_peak_bytes(seen),
            kv_byte_s=self._kv_byte_s(seen),
            device_s=device_s,
            usd=None if price is None or device_s is None else device_s / 3600 * price,
            tokens_usd=tokens_usd(seen, self.token_prices) if seen.answers else None,
        )

    def _device_s(self, seen: Observation) -> float | None:
        shares = [score.busy_s for score in seen.scores]
        if seen.answers:
            shares.append(seen.measured.busy_s)
        known = [share for share in shares if share is not None]
        return sum(known) * self.num_devices if known and len(known) == len(shares) else None

    def _kv_peak_bytes(self, seen: Observation) -> int | None:
        """Its own answers are made at a time, and so are the scoring passes before them."""
        prompt = len(seen.prompt_token_ids)
        generating = [prompt + len(answer.token_ids) for answer in seen.answers]
        scoring = [prompt + len(score.logprobs) for score in seen.scores if score.logprobs]
        if self.block_tokens is None or self.block_bytes is None or not prompt or not (generating or scoring):
            return None
        return max(sum(map(self._blocks, each)) for each in (generating, scoring)) * self.block_bytes

    def _kv_byte_s(self, seen: Observation) -> float | None:
        prefill_s, decode_s = seen.measured.prefill_s, seen.measured.decode_s
        if self.block_tokens is None or self.block_bytes is None or prefill_s is None or decode_s is None:
            return None
        prompt = len(seen.prompt_token_ids)
        longest = max((len(answer.token_ids) for answer in seen.answers), default=0)
        block_s = 0.0
        for answer in seen.answers:
            first, last = self._blocks(prompt), self._blocks(prompt + len(answer.token_ids))
            its_decode_s = decode_s * len(answer.token_ids) / longest if longest else 0.0
            block_s += first * prefill_s + (first + last) / 2 * its_decode_s
        return block_s * self.block_bytes if seen.answers else None

    def _blocks(self, num_tokens: int) -> int:
        """The last token of a sequence is never computed, so it needs no place."""
        assert self.block_tokens is not None
        return -(-max(1, num_tokens - 1) // self.block_tokens)
