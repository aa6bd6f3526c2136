from __future__ import annotations

from dataclasses import replace

import pytest
from tests.builders import Clock

from understudy.config import Limits, Prices
from understudy.meter.attribution import Share
from understudy.meter.caps import Caps
from understudy.meter.cost import Cost, cost, projected, usd
from understudy.meter.traffic import Finished, Kind, Traffic

PRICES = Prices(usd_per_device_hour=3.6, usd_per_kwh=0.36)  # 0.001 a device second, 1e-7 a joule
CHAMPION = Traffic(
    finished={
        Kind.ANSWER: Finished(100, prompt_tokens=50_000, generated_tokens=10_000, prefill_s=20.0, decode_s=60.0),
        Kind.SCORE: Finished(),
    }
)
CHALLENGER = Traffic(
    finished={
        Kind.ANSWER: Finished(40, prompt_tokens=20_000, generated_tokens=4_000, prefill_s=4.0, decode_s=12.0),
        Kind.SCORE: Finished(40, prompt_tokens=24_000, generated_tokens=40, prefill_s=4.0),
    }
)


def test_device_time_and_energy_have_a_price() -> None:
    assert usd(Share(3600.0), PRICES) == pytest.approx(3.6)
    assert usd(Share(0.0, 3.6e6), PRICES) == pytest.approx(0.36)
    assert usd(Share(10.0, 1000.0), Prices(usd_per_device_hour=3.6)) == pytest.approx(0.01)
    assert usd(Share(10.0), Prices(usd_per_kwh=0.36)) is None  # nothing measured the energy
    assert usd(Share(10.0, 0.0), Prices(usd_per_kwh=0.36)) == 0.0  # measured, and none


def test_a_champion() -> None:
    found = cost(Share(80.0, 100_000.0), CHAMPION, 864.0, PRICES)
    assert found.usd == pytest.approx(0.08 + 0.01)
    assert found.usd_per_answer == pytest.approx(0.09 / 100)
    assert found.device_s_per_answer == pytest.approx(0.8)
    assert found.joules_per_answer == pytest.approx(1000.0)
    assert found.usd_per_million_input_tokens == pytest.approx(0.09 * 20 / 80 / 50_000 * 1e6)
    assert found.usd_per_million_output_tokens == pytest.approx(0.09 * 60 / 80 / 10_000 * 1e6)
    assert found.usd_per_day == pytest.approx(9.0)
    spent = (
        found.usd_per_million_input_tokens * 50_000 / 1e6  # type: ignore[operator]
        + found.usd_per_million_output_tokens * 10_000 / 1e6  # type: ignore[operator]
    )
    assert spent == pytest.approx(found.usd)  # both together are the whole


def test_a_challengers_scoring_is_not_in_the_price_of_its_answers_but_is_in_the_shadows() -> None:
    found = cost(Share(20.0, 30_000.0), CHALLENGER, 864.0, PRICES)
    assert found.usd == pytest.approx(0.02 + 0.003)
    assert found.device_s_per_answer == pytest.approx(20.0 * 16 / 20 / 40)
    assert found.usd_per_answer == pytest.approx(0.023 * 16 / 20 / 40)


def test_without_prices_there_is_no_money_and_without_counters_no_energy() -> None:
    found = cost(Share(80.0, None), CHAMPION, 864.0, Prices())
    assert [getattr(found, name) for name in Cost.__dataclass_fields__ if "usd" in name] == [None] * 5
    assert found.joules_per_answer is None
    assert found.device_s_per_answer == pytest.approx(0.8)


def test_before_any_answer_nothing_is_divided() -> None:
    found = cost(Share(), Traffic(), 0.0, PRICES)
    assert found.usd == 0.0
    assert found.usd_per_answer is found.usd_per_day is found.device_s_per_answer is None
    assert projected(found, found, 0.0, (None, None)) is None


def test_promotion_is_the_challengers_answer_at_the_champions_traffic_and_says_what_it_assumes() -> None:
    champion = cost(Share(80.0, 100_000.0), CHAMPION, 864.0, PRICES)
    challenger = cost(Share(20.0, 30_000.0), CHALLENGER, 864.0, PRICES)
    found = projected(challenger, champion, 864.0, (1.25, 8.0))
    assert found is not None
    assert found.device_s_per_day == pytest.approx(0.4 * 10_000)
    assert found.saved_device_fraction == pytest.approx(0.5)
    assert found.usd_per_day == pytest.approx(0.023 * 16 / 20 / 40 * 10_000)
    assert found.saved_usd_per_day == pytest.approx(9.0 - 4.6)
    assert "1.2 requests at a time and the champion 8.0" in found.assumption
    dearer = projected(replace(challenger, usd_per_answer=1.0), champion, 864.0, (None, 8.0))
    assert dearer is not None
    assert dearer.saved_usd_per_day is not None
    assert dearer.saved_usd_per_day < 0
    assert "an unknown number of" in dearer.assumption


# Caps


def test_without_caps_nothing_stops() -> None:
    caps = Caps(Limits(), Clock())
    caps.took(1e9, 1e9)
    assert caps.over() is None


def test_a_share_stops_at_what_a_minute_allows_and_goes_on_as_the_minute_moves() -> None:
    clock = Clock()
    caps = Caps(Limits(max_device_share=0.3), clock)
    for _ in range(17):
        clock.advance(1)
        caps.took(1.0, None)
    assert caps.over() is None
    clock.advance(1)
    caps.took(1.0, None)
    over = caps.over()
    assert over is not None
    assert over[0] == "max_device_share"
    assert "0.300 of the device over the last 60 s, 0.3 is allowed" in over[1]
    clock.advance(43.5)  # the first second leaves the window
    assert caps.over() is None


def test_dollars_an_hour() -> None:
    clock = Clock()
    caps = Caps(Limits(max_usd_per_hour=6.0), clock)
    caps.took(0.0, 0.09)
    assert caps.over() is None  # 5.4 an hour
    caps.took(0.0, 0.02)
    over = caps.over()
    assert over is not None
    assert over[0] == "max_usd_per_hour"
    clock.advance(61)
    assert caps.over() is None
