from __future__ import annotations

import random

from understudy.meter.gaps import added, gaps_between, middle_s, quantile_s


def bucket_of(gap_s: float) -> int:
    ((bucket, _),) = gaps_between([0.0, gap_s])
    return bucket


def test_a_gap_is_read_back_within_five_percent() -> None:
    for gap_s in (0.00013, 0.01, 0.0417, 1.0, 77.0):
        assert abs(middle_s(bucket_of(gap_s)) / gap_s - 1) < 0.05


def test_a_stream_of_n_outputs_has_n_minus_one_gaps() -> None:
    gaps = gaps_between([1.0, 1.01, 1.02, 1.52])
    assert sum(count for _, count in gaps) == 3
    assert quantile_s(gaps, 1.0) == middle_s(bucket_of(0.5))
    assert gaps_between([]) == gaps_between([1.0]) == ()
    assert quantile_s((), 0.5) is None


def test_quantiles_of_added_streams_are_those_of_all_gaps() -> None:
    rng = random.Random(3)
    all_gaps = [rng.lognormvariate(-3, 1) for _ in range(5000)]
    streams, start = [], 0
    for length in (1000, 1500, 2500):
        times, now = [0.0], 0.0
        for gap in all_gaps[start : start + length]:
            now += gap
            times.append(now)
        streams.append(gaps_between(times))
        start += length
    together = added(*streams)
    for fraction in (0.5, 0.95, 0.99):
        true = sorted(all_gaps)[int(fraction * len(all_gaps)) - 1]
        found = quantile_s(together, fraction)
        assert found is not None
        assert abs(found / true - 1) < 0.06


def test_no_time_at_all_is_a_gap_too() -> None:
    assert sum(count for _, count in gaps_between([1.0, 1.0, 1.0])) == 2
