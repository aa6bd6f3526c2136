"""Who used the device: its seconds and its joules, split over the models that it runs, and over nobody.

One window of T seconds (some seconds, not milliseconds: counters are 100 ms coarse) on one set of devices, in which the
driver stepped model m for b_m seconds and the devices took E joules:

    seconds   model m: b_m                      idle: T - sum(b)
    joules    idle: P_idle * (T - sum(b))       model m: (E - idle) * b_m / sum(b)

While nobody is stepped the device draws P_idle, which is nobody's and is shown as idle; what it draws while it is
busy belongs to whoever is being stepped. P_idle is the lowest mean power of any window so far: never too low, and right
once one window was idle. Where steps overlapped, sum(b) > T and every b_m is scaled by T / sum(b).

What can be wrong, as a fraction of a model's joules:

    power      two models that draw different power while stepped are given the same. Model m, with a share s of the
               busy seconds, is off by (1 - s) * |P_others / P_m - 1|: nothing at equal power or alone on its device
    edges      busy seconds and energy are not read at the same instant: 2 * skew / T (skew: at most the sampler's
               period and the counter's own step)
    idle       until a window was idle, P_idle is too high, and as much is missing from the models as is too much
               in idle

tests/meter/test_attribution.py runs loads whose split is known against these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """What one model, or nobody, took. Device seconds count each device; joules None: nothing measures them."""

    device_s: float = 0.0
    energy_joules: float | None = None

    def plus(self, other: Share) -> Share:
        """Both together."""
        if other.energy_joules is None:
            return Share(self.device_s + other.device_s, self.energy_joules)
        return Share(self.device_s + other.device_s, (self.energy_joules or 0.0) + other.energy_joules)


@dataclass(frozen=True, slots=True)
class Window:
    """What was measured.

    Attributes:
        seconds: how long.
        busy_s: by model, seconds in which the driver stepped it.
        energy_joules: of all devices together.
        num_devices: that the models of this set run on; tensor parallelism uses them all in every step.
    """

    seconds: float
    busy_s: Mapping[str, float]
    energy_joules: float | None = None
    num_devices: int = 1


@dataclass(frozen=True, slots=True)
class Split:
    """One window, split. Sums are the window's own: nothing is lost and nothing invented."""

    models: Mapping[str, Share]
    idle: Share


def split(window: Window, idle_watts: float) -> Split:
    """The window's device seconds and joules by model. ``idle_watts`` is of all devices together."""
    busy = sum(window.busy_s.values())
    scale = min(1.0, window.seconds / busy) if busy else 0.0
    idle_s = max(0.0, window.seconds - busy)
    idle_joules = active_joules = None
    if window.energy_joules is not None:
        idle_joules = window.energy_joules if not busy else min(window.energy_joules, idle_watts * idle_s)
        active_joules = window.energy_joules - idle_joules
    models = {
        name: Share(
            own * scale * window.num_devices,
            None if active_joules is None else (active_joules * own / busy if busy else 0.0),
        )
        for name, own in window.busy_s.items()
    }
    return Split(models, Share(idle_s * window.num_devices, idle_joules))


class Attribution:
    """Adds windows up for one set of devices."""

    def __init__(self) -> None:
        self.models: dict[str, Share] = {}
        self.idle = Share()
        self.seconds = 0.0
        self.idle_watts = float("inf")
        """The lowest mean power of a window; infinite before there was one."""

    def add(self, window: Window) -> Split:
        """One more window."""
        if window.energy_joules is not None and window.seconds > 0:
            self.idle_watts = min(self.idle_watts, window.energy_joules / window.seconds)
        found = split(window, self.idle_watts)
        for name, share in found.models.items():
            self.models[name] = self.models.get(name, Share()).plus(share)
        self.idle = self.idle.plus(found.idle)
        self.seconds += window.seconds
        return found


def power_error_fraction(own_share: float, others_power_over_own: float) -> float:
    """How wrong a model's joules can be because others draw another power; see the top of this file.

    Args:
        own_share: of the busy seconds.
        others_power_over_own: their power while stepped, over the model's.
    """
    return (1 - own_share) * abs(others_power_over_own - 1)
