"""When the watchdog finds that a challenger hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.builders import in_loop

from understudy.engines import watchdog
from understudy.engines.flight import Activity
from understudy.engines.watchdog import LOOK_EVERY_S, Watch, watch

HANG_S = 5.0


class World:
    """A driver whose activity is set, looked at every half second."""

    def __init__(self, has_champion: bool = True) -> None:
        self.now_s, self.said = 1000.0, []
        self.core: int | None = None
        self.kind, self.since_s, self.heard_s = "idle", 0.0, 0.0
        self.watch = Watch(self.look, has_champion, HANG_S, lambda core, why: self.said.append((core, why)))

    def look(self) -> Activity:
        return Activity(self.core, self.kind, self.now_s - self.since_s, self.now_s - self.heard_s)

    def works(self, core: int | None, kind: str = "stepping") -> None:
        self.core, self.kind = core, kind if core is not None else "idle"
        self.since_s = self.heard_s = self.now_s

    def passes(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(round(seconds / LOOK_EVERY_S)):
            each()
            self.now_s += LOOK_EVERY_S
            self.watch.check(self.now_s)


def test_a_challenger_in_one_slice_for_too_long_hangs_and_is_told_of_once() -> None:
    world = World()
    world.works(2)
    world.passes(HANG_S - 0.5)
    assert world.said == []
    world.passes(30)
    assert world.said == [(2, "was in one step for 5 s")]


def test_many_steps_are_no_hang_however_slow() -> None:
    world = World()
    for _ in range(10):
        world.works(1)
        world.passes(HANG_S - 0.5)
    assert world.said == []


@pytest.mark.parametrize("core", [0, None])
def test_the_champions_own_process_is_not_ended_for_the_champion(core: int | None) -> None:
    world = World()
    world.works(core)
    world.passes(60)
    assert world.said == []


def test_loading_has_a_limit_of_its_own() -> None:
    world = World()
    world.works(1, "loading")
    world.passes(600)
    assert world.said == []


def test_a_challengers_own_process_that_is_stopped() -> None:
    world = World(has_champion=False)
    world.works(None)
    world.passes(60, each=lambda: world.works(None))  # idle, and it says so
    assert world.said == []
    world.passes(60)
    assert world.said == [(None, "gave no sign of life for 5 s")]


def test_a_challengers_own_process_that_hangs_in_a_step() -> None:
    world = World(has_champion=False)
    world.works(0)
    world.passes(60)
    assert world.said == [(0, "was in one step for 5 s")]


def test_a_machine_that_was_suspended_finds_nobody_hanging() -> None:
    world = World()
    world.works(1)
    world.passes(1)
    world.now_s += 3600
    world.passes(1)
    assert world.said == []


def test_a_look_that_comes_late_starts_no_new_count() -> None:
    """Between the clock and the recorder the process can lose its core."""
    world = World()
    world.works(2)
    late = iter([0.0, 0.02, 0.05] * 100)
    plain = world.look
    world.watch.look = lambda: (
        (seen := plain()) and Activity(seen.core, seen.kind, seen.for_s + next(late), seen.silent_s)
    )
    world.passes(HANG_S + 1)
    assert world.said


@in_loop
async def test_a_look_that_raises_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_EVERY_S", 0.0)
    looked = asyncio.Event()
    looks = 0

    def look() -> Activity:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("the recorder is gone")
        looked.set()
        return Activity(None, "idle", 0.0, 0.0)

    watching = asyncio.create_task(watch([Watch(look, True, HANG_S, lambda *_: None)], lambda: 0.0))
    await looked.wait()
    watching.cancel()
