"""The driver over cores without a model. What it does with real ones is in tests/serving."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from understudy.engines.driver import ChampionFault, Driver
from understudy.engines.flight import Flight
from understudy.engines.pace import Share, StepLimit


class Clock:
    """Seconds that pass only where a step takes them."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class StubCore:
    """A core with so many steps to do. ``slices`` are the seconds between the points of one step.

    After a recovery comes an empty step, as vLLM has one to tell its workers which requests are gone.
    """

    name: str
    index: int
    clock: Clock
    log: list[str]
    steps: int = 0
    slices: tuple[float, ...] = (0.001,)
    fault: Exception | None = None
    recovers: bool = False
    recovered: bool = False
    point: Callable[[], None] = lambda: None
    mail: list[Callable[[], None]] = field(default_factory=list)
    during: Callable[[int], None] = lambda number: None
    limits: list[int | None] = field(default_factory=list)
    ready: bool = True
    on_device: list[list[tuple[int, float]]] | None = None
    dead: bool = False

    def has_mail(self) -> bool:
        return bool(self.mail)

    def take_in(self) -> None:
        while self.mail:
            self.mail.pop(0)()

    def has_work(self) -> bool:
        return self.steps > 0 or self.recovered

    def is_ready(self) -> bool:
        return self.ready

    def enter(self) -> None:
        self.log.append(f"+{self.name}")

    def leave(self) -> None:
        self.log.append(f"-{self.name}")

    def step(self, max_tokens: int | None) -> int:
        if self.recovered:
            self.recovered = False
            self.log.append(f"{self.name} empty")
            return 0
        self.limits.append(max_tokens)
        self.steps -= 1
        for number, seconds in enumerate(self.slices):
            if number:
                self.point()
            self.log.append(f"{self.name}{number}" if len(self.slices) > 1 else self.name)
            self.clock.now_s += seconds
            self.during(number)
        if self.fault is not None:
            raise self.fault
        return max_tokens or 1

    def device_times(self) -> list[tuple[int, float]] | None:
        return None if self.on_device is None else self.on_device.pop(0)

    def recover(self, fault: Exception) -> bool:
        self.recovered = self.recovers
        return self.recovers

    def say_dead(self) -> None:
        self.dead = True


class NoMoreWork(BaseException):
    """Ends the driver where it would wait."""


class Wake(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        raise NoMoreWork


class Stage:
    """A champion, two challengers, and the driver over them."""

    def __init__(self, folder: Path, min_share: float = 0.0, max_slice_s: float = 0.010) -> None:
        self.clock, self.log, self.deaths = Clock(), [], []
        self.away_s = 0.0
        self.champion = StubCore("C", 0, self.clock, self.log)
        self.a = StubCore("a", 1, self.clock, self.log)
        self.b = StubCore("b", 2, self.clock, self.log)
        self.flight = Flight(folder / "flight", create=["c", "a", "b"])
        self.limits = {name: StepLimit(max_slice_s, 512, 64) for name in "ab"}
        self.driver = Driver(
            [self.champion, self.a, self.b],
            self.champion,
            Wake(),
            lambda name, why: self.deaths.append((name, why)),
            self.flight,
            self.limits,
            Share(min_share, max_slice_s),
            self.clock,
            self.worked,
        )
        self.a.point = self.b.point = self.driver.yield_to_champion

    def worked(self) -> float:
        """What of the time the thread had the processor."""
        return self.clock.now_s - self.away_s

    def run(self) -> list[str]:
        """Until there is no work. What was stepped, in order."""
        with pytest.raises(NoMoreWork):
            self.driver.run()
        return self.stepped()

    def stepped(self) -> list[str]:
        return [entry for entry in self.log if entry[0] not in "+-"]

    def champion_gets(self, steps: int) -> None:
        """A request arrives for the champion."""
        self.champion.mail.append(lambda: setattr(self.champion, "steps", self.champion.steps + steps))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_champion_is_stepped_whenever_it_has_work_and_challengers_in_turn(stage: Stage) -> None:
    stage.champion.steps, stage.a.steps, stage.b.steps = 3, 2, 2
    assert stage.run() == ["C", "C", "C", "a", "b", "a", "b"]


def test_a_request_that_arrives_during_a_challengers_step_is_next(stage: Stage) -> None:
    stage.a.steps = 2
    stage.a.during = lambda _: stage.champion_gets(1) if stage.a.steps == 1 else None
    assert stage.run() == ["a", "C", "a"]


def test_at_a_preemption_point_the_champion_is_stepped_inside_the_challengers_step(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 1, (0.002, 0.003, 0.004)
    stage.a.during = lambda number: stage.champion_gets(2) if number == 0 else None
    assert stage.run() == ["a0", "C", "C", "a1", "a2"]
    steps = stage.flight.steps(1)
    assert (steps.steps, steps.slices, steps.yielded, steps.longest_ms) == (1, 3, 1, 4.0)
    assert steps.busy_s == 0.009  # without what the champion took in between
    assert stage.flight.steps(0).busy_s == 0.002


def test_a_request_that_arrives_while_the_challenger_is_interrupted_is_answered_too(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 1, (0.002, 0.003)
    stage.a.during = lambda number: stage.champion_gets(1) if number == 0 else None
    later = [1]

    def another_one(_: int) -> None:
        if later:
            stage.champion_gets(later.pop())

    stage.champion.during = another_one
    assert stage.run() == ["a0", "C", "C", "a1"]


def test_what_the_process_has_only_once_changes_hands_at_a_preemption_point(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 1, (0.001, 0.001)
    stage.a.during = lambda number: stage.champion_gets(1) if number == 0 else None
    stage.run()
    assert stage.log == ["+a", "a0", "-a", "+C", "C", "-C", "+a", "a1"]


def test_it_changes_hands_only_when_another_core_is_stepped(stage: Stage) -> None:
    stage.champion.steps = 5
    stage.run()
    assert stage.log.count("+C") == 1
    assert "-C" not in stage.log


def test_who_takes_in_has_what_the_process_has_only_once(stage: Stage) -> None:
    stage.champion.steps = 1
    stage.champion.during = lambda _: stage.b.mail.append(lambda: stage.log.append("b takes in"))
    stage.run()
    assert stage.log == ["+C", "C", "-C", "+b", "b takes in"]


def test_so_does_the_champion_at_a_preemption_point(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 1, (0.001, 0.001)
    stage.a.during = lambda number: (
        stage.champion.mail.append(lambda: stage.log.append("C takes in")) if not number else None
    )
    stage.run()
    assert stage.log == ["+a", "a0", "-a", "+C", "C takes in", "-C", "+a", "a1"]


def test_a_point_without_champion_work_changes_nothing(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 2, (0.001, 0.001)
    stage.run()
    assert stage.log == ["+a", "a0", "a1", "a0", "a1"]


def test_a_champion_that_faults_inside_a_challengers_step_ends_the_process(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 1, (0.001, 0.001)
    stage.a.during = lambda _: stage.champion_gets(1)
    stage.champion.fault = OSError("no")
    with pytest.raises(ChampionFault, match="OSError: no"):
        stage.driver.run()
    assert stage.champion.dead
    assert (stage.a.dead, stage.deaths) == (False, [])
    assert stage.flight.activity(0.0).core == 0  # what the recorder blames


def test_a_champion_that_faults_ends_the_process(stage: Stage) -> None:
    stage.champion.steps, stage.champion.fault = 1, OSError("no")
    with pytest.raises(OSError, match="no"):
        stage.driver.run()
    assert stage.champion.dead


def test_a_challenger_that_raises_is_left_out_and_the_others_go_on(stage: Stage) -> None:
    stage.champion.steps, stage.a.steps, stage.b.steps = 1, 9, 2
    stage.a.fault = OSError("no")
    assert stage.run() == ["C", "a", "b", "b"]
    assert stage.deaths == [("a", "OSError: no")]
    assert (stage.a.dead, stage.champion.dead, stage.b.dead) == (True, False, False)


def test_a_challenger_that_recovers_goes_on_and_one_that_does_so_too_often_does_not(stage: Stage) -> None:
    stage.a.steps, stage.a.fault, stage.a.recovers = 9, MemoryError(), True
    assert stage.run() == ["a", "a empty"] * 3 + ["a"]
    assert stage.deaths == [("a", "MemoryError: ")]


@pytest.mark.parametrize("on_device", [None, []])
def test_a_step_that_raises_is_a_slice_too(stage: Stage, on_device: list[list[tuple[int, float]]] | None) -> None:
    """The champion could have to wait for it as for any other, launched or not."""
    stage.a.steps, stage.a.slices, stage.a.fault = 1, (0.002, 0.030), OSError("no")
    stage.a.on_device = on_device
    stage.run()
    steps = stage.flight.steps(1)
    assert (steps.steps, steps.slices, steps.longest_ms, steps.over_limit) == (0, 2, 30.0, 1)
    assert stage.limits["a"].tokens == 64  # how large a step may be does not follow from one that was cut off


def test_only_faults_in_a_row_count(stage: Stage) -> None:
    stage.a.steps, stage.a.recovers = 12, True

    def every_other_step_is_well(_: int) -> None:
        stage.a.fault = MemoryError() if stage.a.steps % 2 else None

    stage.a.during = every_other_step_is_well
    assert stage.run().count("a") == 12
    assert not stage.a.dead


def test_the_limit_follows_the_longest_slice_and_reaches_the_core(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 4, (0.020, 0.001)
    stage.run()
    assert stage.a.limits == [64, 64, 32, 32]
    assert stage.flight.steps(1).max_tokens == stage.limits["a"].tokens == 16
    assert stage.flight.steps(1).over_limit == 4
    assert stage.champion.limits == []


def test_what_another_process_took_of_the_core_makes_no_step_smaller_but_the_champion_waited_for_it(
    stage: Stage,
) -> None:
    def another_process_runs(_: int) -> None:
        stage.clock.now_s += 0.050
        stage.away_s += 0.050

    stage.a.steps, stage.a.slices, stage.a.during = 8, (0.001, 0.001), another_process_runs
    stage.run()
    assert stage.limits["a"].tokens == 512
    steps = stage.flight.steps(1)
    assert (steps.longest_ms, steps.over_limit) == (51.0, 16)


def test_the_champion_has_no_limit(stage: Stage) -> None:
    stage.champion.steps = 1
    stage.run()
    assert stage.champion.limits == [None]


def test_without_a_guarantee_a_champion_that_never_rests_leaves_nothing(stage: Stage) -> None:
    stage.champion.steps, stage.a.steps = 1000, 1
    assert stage.run() == ["C"] * 1000 + ["a"]


def test_the_guarantee_keeps_the_shadow_moving_under_a_champion_that_never_rests(tmp_path: Path) -> None:
    stage = Stage(tmp_path, min_share=0.1)
    stage.champion.steps, stage.a.steps = 1000, 500
    stage.run()
    in_load = stage.log[: max(number for number, entry in enumerate(stage.log) if entry == "C")].count("a")
    assert in_load == pytest.approx(100, abs=2)  # 1 ms for every 10 ms of the champion's
    assert stage.flight.steps(1).guaranteed == in_load


def test_the_guarantee_is_paid_in_slices_and_not_in_whole_steps(tmp_path: Path) -> None:
    stage = Stage(tmp_path, min_share=0.1)
    stage.champion.steps, stage.a.steps, stage.a.slices = 30, 1, (0.001,) * 3
    stepped = stage.run()
    assert [stepped.index(f"a{number}") for number in range(3)] == pytest.approx([1, 11, 22], abs=1)


def test_a_step_that_the_device_has_not_finished_is_not_waited_for(stage: Stage) -> None:
    stage.a.steps, stage.a.ready = 1, False
    stage.b.steps = 1
    assert stage.run() == ["b"]


def test_where_steps_are_launched_the_devices_time_counts_and_not_the_calls(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 3, (0.0001,)
    stage.a.on_device = [[], [(64, 0.020), (64, 0.020)], [(64, 0.004), (32, 0.005)]]
    stage.run()
    assert stage.a.limits == [64, 64, 32]
    steps = stage.flight.steps(1)
    assert (steps.slices, steps.longest_ms, steps.over_limit, round(steps.busy_s, 9)) == (4, 20.0, 2, 0.049)


def test_a_launched_step_that_the_champion_shared_the_device_with_makes_no_step_smaller(stage: Stage) -> None:
    stage.a.steps, stage.a.slices = 3, (0.0001,)
    stage.a.on_device = [[(64, 0.005)], [], [(64, 0.040), (64, 0.005)]]

    def comes(_: int) -> None:
        if stage.a.steps == 1:  # the second is on the device
            stage.champion.steps = 1

    stage.a.during = comes
    assert stage.run() == ["a", "a", "C", "a"]
    steps = stage.flight.steps(1)
    assert stage.a.limits[-1] >= 64
    assert (steps.slices, steps.longest_ms, steps.over_limit, round(steps.busy_s, 9)) == (3, 5.0, 0, 0.015)


def test_what_the_champion_takes_in_at_a_point_is_not_the_challengers_doing(stage: Stage) -> None:
    """Loading an adapter can take longer than a slice may: the watchdog would end the wrong one."""
    seen: list[int | None] = []
    stage.a.steps, stage.a.slices, stage.a.point = 1, (0.001, 0.001), stage.driver.yield_to_champion

    def mail_comes(number: int) -> None:
        if number == 0:
            stage.champion.mail.append(lambda: seen.append(stage.flight.activity(stage.clock()).core))

    stage.a.during = mail_comes
    stage.run()
    assert seen == [None]


def test_the_recorder_says_who_is_at_work(stage: Stage) -> None:
    seen = []
    stage.a.steps, stage.champion.steps = 1, 1
    stage.champion.during = stage.a.during = lambda _: seen.append(stage.flight.activity(0.0).core)
    stage.run()
    assert seen == [0, 1]
    assert stage.flight.activity(0.0).core is None


def test_a_core_alone_is_driven_without_a_champion(tmp_path: Path) -> None:
    clock, log, deaths = Clock(), [], []
    core = StubCore("a", 0, clock, log, steps=2)
    flight = Flight(tmp_path / "flight", create=["a"])
    limit = StepLimit(float("inf"), 512, 512)
    driver = Driver(
        [core], None, Wake(), lambda *why: deaths.append(why), flight, {"a": limit}, Share(0, 1), clock, clock
    )
    core.point = driver.yield_to_champion
    with pytest.raises(NoMoreWork):
        driver.run()
    assert core.limits == [512, 512]
    core.steps, core.fault = 1, OSError("no")
    driver.run()  # nothing is left to drive
    assert deaths == [("a", "OSError: no")]


def test_the_faults_of_taking_in_are_the_cores_own(stage: Stage) -> None:
    def fails() -> Any:
        raise ValueError("bad mail")

    stage.a.mail.append(fails)
    stage.b.steps = 1
    assert stage.run() == ["b"]
    assert stage.deaths == [("a", "ValueError: bad mail")]


def test_what_a_challenger_takes_in_is_a_slice_of_its_own_and_of_nobody_else(
    stage: Stage,
) -> None:
    stage.a.steps = 1

    def choose_how_to_score() -> None:
        stage.clock.now_s += 7.0
        stage.b.point()  # its model's logits are a preemption point, and the champion has work
        stage.log.append("b probed")

    def meanwhile(_: int) -> None:
        stage.b.mail.append(choose_how_to_score)
        stage.champion.steps = 1

    stage.a.during = meanwhile
    assert stage.run() == ["a", "b probed", "C"]
    a, b = stage.flight.steps(1), stage.flight.steps(2)
    assert (a.slices, a.longest_ms) == (1, 1.0)
    assert (b.steps, b.slices, b.longest_ms, b.over_limit) == (0, 1, 7000.0, 1)  # the champion waited for it


def test_who_takes_in_is_at_work_and_blamed_for_what_happens_there(stage: Stage) -> None:
    seen = []
    for core in (stage.champion, stage.b):
        core.mail.append(lambda: seen.append(stage.flight.activity(stage.clock()).core))
    stage.run()
    assert seen == [None, 2]
    assert stage.flight.activity(stage.clock()).core is None
