"""Which exchanges are sampled: by hash of the id, and by nothing else."""

from __future__ import annotations

import math

import pytest
from tests.builders import Offer, WatchedEngine, answer, exchange, in_loop, offers, running, shadow_spec

from understudy.lane.sampling import is_sampled

IDS = [f"{number:032x}" for number in range(10_000)]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_the_sampled_fraction_is_the_one_that_was_asked_for(fraction: float) -> None:
    sampled = sum(is_sampled(each, fraction) for each in IDS)
    deviation = math.sqrt(len(IDS) * fraction * (1 - fraction))
    assert abs(sampled - len(IDS) * fraction) < 4 * deviation


def test_none_at_0_and_all_at_1() -> None:
    assert not any(is_sampled(each, 0.0) for each in IDS)
    assert all(is_sampled(each, 1.0) for each in IDS)


def test_a_larger_fraction_keeps_what_a_smaller_one_had() -> None:
    assert {each for each in IDS if is_sampled(each, 0.1)} < {each for each in IDS if is_sampled(each, 0.3)}


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    """Python's own hash() would differ from process to process."""
    chosen = [each for each in "abcdef" if is_sampled(each, 0.5)]
    assert chosen == ["a", "c", "e", "f"]  # blake2b's first bytes: 40 84 37 b5 10 2e


@in_loop
async def test_neither_the_request_nor_the_answer_sways_the_choice() -> None:
    chosen = []
    for long in (False, True):
        content = [answer(*range(500), text="long " * 500)] if long else [answer(7)]
        prompt = tuple(range(900)) if long else (1,)
        async with running(WatchedEngine(), spec=shadow_spec(sample=0.5)) as stage:
            for each in IDS[:200]:
                stage.lane.offer(Offer(exchange(each, *content, prompt_token_ids=prompt)))
            await stage.lane.idle()
            chosen.append(sorted(stage.ear.accepted_ids))
    assert chosen[0] == chosen[1]
    assert 60 < len(chosen[0]) < 140


@in_loop
async def test_all_that_is_offered_is_counted_but_only_the_sampled_is_kept() -> None:
    async with running(WatchedEngine(), spec=shadow_spec(sample=0.3)) as stage:
        given = offers(300)
        for each in given:
            stage.lane.offer(each)
        await stage.lane.idle()
        sampled = [each.exchange_id for each in given if is_sampled(each.exchange_id, 0.3)]
        assert stage.counts()["offered"] == 300
        assert stage.counts()["sampled"] == stage.counts()["compared"] == len(sampled)
        assert stage.ear.accepted_ids == sampled
        assert [each.exchange_id for each in given if each.completed] == sampled  # the others cost no copy
        assert stage.ear.offered[-1] == {"fake": int(sampled[-1].removeprefix("x-")) + 1}


@in_loop
async def test_who_opted_out_is_offered_but_never_sampled() -> None:
    engine = WatchedEngine()
    async with running(engine) as stage:
        refused = Offer(exchange("refused"), shadow_off=True)
        stage.lane.offer(refused)
        stage.lane.offer(Offer(exchange("taken")))
        await stage.ear.hears(1)
        assert stage.ear.accepted_ids == ["taken"]
        assert (stage.counts()["offered"], stage.counts()["sampled"]) == (2, 1)
        assert refused.completed == 0
        assert engine.calls == ["prepare", "score", "generate"]
