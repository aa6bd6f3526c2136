"""Loads whose split is known, seen only through counters, against the errors that attribution.py states."""

from __future__ import annotations

import random

import pytest

from understudy.meter.attribution import Attribution, Share, Window, power_error_fraction, split

IDLE_W = 70.0


class Load:
    """A device on which models are stepped at random, with the power of each; what it really took is kept."""

    def __init__(self, seed: int, watts: dict[str, float], shares: dict[str, float], *, skew_s: float = 0.0) -> None:
        self._rng = random.Random(seed)
        self._watts, self._shares, self._skew_s = watts, shares, skew_s
        self.joules = dict.fromkeys(watts, 0.0)
        self.busy_s = dict.fromkeys(watts, 0.0)
        self.idle_joules = 0.0

    def window(self, seconds: float = 2.0) -> Window:
        busy, total = {}, 0.0
        for name, share in self._shares.items():
            busy[name] = seconds * share * self._rng.uniform(0.7, 1.0)
            total += busy[name]
        joules = IDLE_W * (seconds - total)
        self.idle_joules += joules
        for name, own_s in busy.items():
            self.joules[name] += self._watts[name] * own_s
            self.busy_s[name] += own_s
            joules += self._watts[name] * own_s
        seen = {
            name: max(0.0, own + self._rng.uniform(-1, 1) * self._skew_s * own / seconds) for name, own in busy.items()
        }
        return Window(seconds, seen, joules)


def attributed(load: Load, windows: int = 500) -> Attribution:
    attribution = Attribution()
    attribution.add(Window(2.0, dict.fromkeys(load.joules, 0.0), IDLE_W * 2.0))  # one idle window
    load.idle_joules += IDLE_W * 2.0
    for _ in range(windows):
        attribution.add(load.window())
    return attribution


def joules(share: Share) -> float:
    assert share.energy_joules is not None
    return share.energy_joules


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.3}, {"a": 0.05, "b": 0.9}, {"a": 0.6, "b": 0.0}])
def test_equal_power_is_split_exactly(shares: dict[str, float]) -> None:
    load = Load(1, {"a": 350.0, "b": 350.0}, shares)
    found = attributed(load)
    for name in shares:
        assert joules(found.models[name]) == pytest.approx(load.joules[name])
        assert found.models[name].device_s == pytest.approx(load.busy_s[name])
    assert joules(found.idle) == pytest.approx(load.idle_joules)


@pytest.mark.parametrize(("watts_b", "share_b"), [(500.0, 0.3), (200.0, 0.3), (500.0, 0.1)])
def test_unequal_power_is_off_by_what_is_stated_and_not_more(watts_b: float, share_b: float) -> None:
    load = Load(2, {"a": 350.0, "b": watts_b}, {"a": 0.5, "b": share_b})
    found = attributed(load)
    busy = sum(load.busy_s.values())
    for name, others in (("a", watts_b / 350.0), ("b", 350.0 / watts_b)):
        stated = power_error_fraction(load.busy_s[name] / busy, others)
        seen = abs(joules(found.models[name]) / load.joules[name] - 1)
        assert stated * 0.8 < seen < stated * 1.1  # the statement is the size of the error, and not just a bound
    assert joules(found.idle) == pytest.approx(load.idle_joules)


def test_clocks_that_do_not_agree_are_off_by_no_more_than_the_edges() -> None:
    skew_s = 0.5
    load = Load(3, {"a": 350.0, "b": 350.0}, {"a": 0.4, "b": 0.3}, skew_s=skew_s)
    found = attributed(load, windows=200)
    for name in ("a", "b"):
        assert abs(joules(found.models[name]) / load.joules[name] - 1) < 2 * skew_s / 2.0 / 10  # evens out over windows


def test_nothing_is_lost_and_nothing_is_invented() -> None:
    rng = random.Random(4)
    for _ in range(500):
        seconds = rng.uniform(0.1, 5)
        busy = {name: rng.uniform(0, seconds) for name in "abc"[: rng.randint(1, 3)]}
        window = Window(seconds, busy, rng.uniform(0, 2000), num_devices=rng.randint(1, 4))
        found = split(window, rng.uniform(0, 500))
        assert sum(s.device_s for s in (*found.models.values(), found.idle)) == pytest.approx(
            seconds * window.num_devices
        )
        total = sum(joules(share) for share in (*found.models.values(), found.idle))
        assert total == pytest.approx(window.energy_joules)
        assert min(joules(share) for share in (*found.models.values(), found.idle)) >= 0


def test_idle_energy_is_nobodys() -> None:
    found = split(Window(10.0, {"a": 0.0, "b": 0.0}, 700.0), idle_watts=70.0)
    assert joules(found.idle) == 700.0
    assert joules(found.models["a"]) == joules(found.models["b"]) == 0.0
    assert found.idle.device_s == 10.0


def test_without_counters_there_are_seconds_and_no_joules() -> None:
    attribution = Attribution()
    attribution.add(Window(10.0, {"a": 4.0}))
    assert attribution.models["a"] == Share(4.0, None)
    assert attribution.idle == Share(6.0, None)


def test_a_dedicated_device_is_its_models_but_for_idle() -> None:
    found = split(Window(10.0, {"a": 4.0}, 70.0 * 6 + 300.0 * 4, num_devices=2), idle_watts=70.0)
    assert joules(found.models["a"]) == pytest.approx(1200.0)
    assert found.models["a"].device_s == 8.0  # both devices are taken in each step
