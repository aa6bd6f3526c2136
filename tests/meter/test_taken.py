"""Shares of one exchange, by hand, and by what must add up."""

from __future__ import annotations

import pytest
from tests.builders import answer, observation
from tests.meter.test_traffic import finished, iteration, scheduler

from understudy.config import Prices
from understudy.meter.taken import Scale
from understudy.meter.traffic import Traffic, share_of
from understudy.types import Measured, Observation, Score, Taken

MIB = 2**20


def seen(num_prompt: int, *num_tokens: int, scores: tuple[Score, ...] = (), **measured: float) -> Observation:
    return observation(
        *(answer(*range(each)) for each in num_tokens),
        prompt_token_ids=tuple(range(num_prompt)),
        scores=scores,
        measured=Measured(**measured),  # type: ignore[arg-type]
    )


def test_memory_goes_by_blocks_of_what_was_computed() -> None:
    scale = Scale(block_tokens=16, block_bytes=MIB)
    assert scale.weigh(seen(16, 1)).kv_peak_bytes == MIB  # the one token was never computed
    assert scale.weigh(seen(16, 2)).kv_peak_bytes == 2 * MIB
    assert scale.weigh(seen(40, 100)).kv_peak_bytes == 9 * MIB  # 139 tokens
    assert scale.weigh(seen(16, 2, 17)).kv_peak_bytes == 4 * MIB
    held = scale.weigh(seen(40, 100, prefill_s=0.5, decode_s=10.0)).kv_byte_s
    assert held == pytest.approx((3 * 0.5 + (3 + 9) / 2 * 10.0) * MIB)


def test_scoring_holds_the_prompt_and_the_champions_answer() -> None:
    scale, score = Scale(block_tokens=16, block_bytes=MIB), Score((-0.5,) * 60, (1,) * 60, busy_s=0.25)
    assert scale.weigh(seen(40, scores=(score,))).kv_peak_bytes == 7 * MIB
    assert scale.weigh(seen(40, 100, scores=(score,))).kv_peak_bytes == 9 * MIB
    assert scale.weigh(seen(40, scores=(score,))) == Taken(7 * MIB, None, 0.25)


def test_device_time_is_of_answering_and_of_scoring_on_every_device() -> None:
    score = Score((-0.5,), (1,), busy_s=0.25)
    scale = Scale(Prices(usd_per_device_hour=3600.0), num_devices=2)
    taken = scale.weigh(seen(3, 2, scores=(score,), busy_s=1.0))
    assert (taken.device_s, taken.usd) == (2.5, 2.5)
    assert scale.weigh(seen(3, 2, scores=(score,))).device_s is None  # a part is not known: not a smaller number
    assert Scale().weigh(seen(3, 2, busy_s=1.0)).usd is None


def test_tokens_by_their_price_where_the_model_has_one() -> None:
    scale = Scale(token_prices={"champion": {"input": 1.0, "output": 10.0}})
    assert scale.weigh(seen(100, 5, 5)).tokens_usd == pytest.approx(200e-6)
    assert Scale(token_prices={"other": {"input": 1.0, "output": 10.0}}).weigh(seen(100, 5)).tokens_usd is None


def test_what_is_not_known_is_null() -> None:
    assert Scale().weigh(seen(3, 2)) == Taken()
    assert Scale(block_tokens=16, block_bytes=MIB).weigh(seen(0)) == Taken()


def test_the_shares_of_requests_that_overlap_are_the_busy_seconds() -> None:
    busy = 10.0  # of loading: nobody's
    traffic = Traffic()
    traffic.watch(lambda: busy)
    rises: dict[str, float] = {}

    def step(seconds: float, running: int, *ended: str) -> None:
        nonlocal busy
        busy += seconds
        traffic.record(scheduler(running), iteration(*map(finished, ended)))
        rises.update({name: traffic.each_s - rises[name] for name in ended})

    rises["a"] = traffic.each_s
    step(1.0, 1)
    rises["b"] = rises["c"] = traffic.each_s
    step(3.0, 3)
    step(3.0, 2, "b")
    step(0.5, 0, "a", "c")
    assert rises == pytest.approx({"a": 1.0 + 1.0 + 1.0 + 0.25, "b": 2.0, "c": 2.25})
    assert sum(rises.values()) == pytest.approx(busy - 10.0)
    step(2.0, 0)  # of one that was aborted: nobody's either
    before = traffic.each_s
    step(1.0, 1)
    assert traffic.each_s - before == pytest.approx(1.0)


def test_what_waited_in_the_queue_is_charged_for_what_it_was_served() -> None:
    assert share_of(4.0, waited_s=3.0, served_s=1.0, num_tokens=[7]) == pytest.approx(1.0)
    assert share_of(4.0, 0.0, 1.0, [10, 5, 0]) == pytest.approx(6.0)  # answers are requests; short ones leave early
    assert share_of(0.0, 0.0, 1.0, [7]) is share_of(4.0, 0.0, 0.0, [7]) is share_of(4.0, 0.0, 1.0, []) is None
