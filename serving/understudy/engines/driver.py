"""The driver: one thread that steps the champion whenever it has work, and in the gaps the challengers in turn.

What the champion can have to wait for is one slice of a challenger: a stretch of its work that nothing interrupts.
Without preemption points that is a step, kept short by a token limit that follows from measured steps (pace.py). With
them (preempt.py, on the CPU) it is the stretch between two points: there the challenger's forward pass asks the driver,
which steps the champion then and there until it has no work, and returns.

Knows neither vllm nor torch: a core is what the protocol says.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from understudy.engines.flight import STEPPING, Flight
from understudy.engines.pace import Share, StepLimit

HEARTBEAT_S = 1.0
POLL_S = 0.0002  # while a challenger's step runs on the device and the champion has no work
RECOVERIES_IN_A_ROW = 3


class SteppedCore(Protocol):
    """What the driver asks of a core."""

    name: str
    index: int
    """Its place in the flight recorder."""

    def has_mail(self) -> bool:
        """Whether its client sent something, or it has something else to do between steps. Cheap."""

    def take_in(self) -> None:
        """Take in what its client sent."""

    def has_work(self) -> bool:
        """Whether there is something to step."""

    def is_ready(self) -> bool:
        """Whether a step would start at once, and not wait for one that the device has not finished."""

    def enter(self) -> None:
        """Make what is one for the whole process this core's own: random streams, CUDA stream, workspace."""

    def leave(self) -> None:
        """Keep it for the next time."""

    def step(self, max_tokens: int | None) -> int:
        """One step of at most so many tokens, or as many as it likes; how many it had."""

    def device_times(self) -> Sequence[tuple[int, float]] | None:
        """Tokens and seconds on the device of the launched steps that have ended since the last call.

        None where a step is over when its call returns: then the call's own time counts.
        """

    def recover(self, fault: Exception) -> bool:
        """Give up its requests and go on; False where it cannot."""

    def say_dead(self) -> None:
        """Tell its client that it is gone."""


class ChampionFault(BaseException):
    """The champion faulted inside a challenger's step. No Exception, so that nothing of the challenger catches it."""


class Driver:
    """Steps the cores of one engine process. Not thread-safe: it is one thread.

    Args:
        cores: the champion first where there is one.
        champion: goes before the others, or None.
        wake: set when any core has mail.
        tell_dead: called with a core's name and the reason when a challenger has faulted.
        flight: what it is doing is written here.
        limits: for each challenger by its name; the champion has none.
        share: what the challengers are owed.
        clock: monotonic seconds.
        worked: seconds of work, from which step sizes follow; ``clock`` where none is given. On the CPU it is the
            thread's own processor time: that another process was given the core says nothing about how large a step
            may be. What the champion waited is always ``clock``'s.
    """

    def __init__(
        self,
        cores: Sequence[SteppedCore],
        champion: SteppedCore | None,
        wake: threading.Event,
        tell_dead: Callable[[str, str], None],
        flight: Flight,
        limits: dict[str, StepLimit],
        share: Share,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] | None = None,
    ) -> None:
        self._cores = list(cores)  # the champion first; a challenger that was stepped goes to the end
        self._champion = champion
        self._current: SteppedCore | None = None  # whose is what the process has only once
        self._stepping: SteppedCore | None = None  # the challenger that is in a step: only then a point is one
        self._wake = wake
        self._tell_dead = tell_dead
        self._flight = flight
        self._limits = limits
        self._share = share
        self._clock, self._worked = clock, worked or clock
        self._slice_started_s = self._slice_worked_s = 0.0
        self._longest_work_s = 0.0
        self._guaranteed = False
        self._faults: dict[str, int] = {}
        self._champion_steps = 0
        self._launched_at: dict[str, deque[int]] = defaultdict(deque)  # the champion's steps when each was launched
        self._undisturbed_s: dict[str, float] = {}

    def run(self) -> None:
        """Never returns while a core is alive. Raises what the champion raised."""
        while self._cores:
            self._wake.clear()
            for core in list(self._cores):
                if core.has_mail():
                    self._take_in(core)
            chosen = self._next()
            if chosen is None:
                self._flight.resting(self._clock())
                self._wake.wait(POLL_S if any(each.has_work() for each in self._cores) else HEARTBEAT_S)
            elif chosen is self._champion:
                self._try(chosen, partial(self._step_champion, chosen))
            else:
                self._step_challenger(chosen)

    def yield_to_champion(self) -> None:
        """A preemption point of the challenger that is being stepped: the champion first, if it has work.

        Outside a step it is none: a challenger that chooses how to score runs parts of its model while it takes in.

        Raises:
            ChampionFault: the champion faulted.
        """
        champion, challenger = self._champion, self._stepping
        if champion is None or challenger is None:
            return
        self._slice_ended(challenger)
        if champion.has_mail():
            self._flight.resting(self._clock())  # what follows is the champion's doing
        try:
            self._take_in_mail(champion)
            waits = champion.has_work()
            if waits and not self._share.is_owed:
                self._flight.yielded(challenger.index)
                while champion.has_work() and not self._share.is_owed:
                    self._step_champion(champion, someone_waits=True)
                    self._take_in_mail(champion)
                waits = champion.has_work()
        except Exception as fault:
            champion.say_dead()
            raise ChampionFault(f"{type(fault).__name__}: {fault}") from fault
        self._enter(challenger)
        self._slice_starts(challenger, guaranteed=waits)

    # inside

    def _take_in(self, core: SteppedCore) -> None:
        """A challenger is at work meanwhile, as in a step: it can hang or crash here as well, and is to be blamed.

        Choosing how to score may take long and is no hang: the watchdog looks from when every challenger is warm, and
        until then start_timeout_s is the limit. The champion can have to wait for it: it is a slice of its own.
        """
        started_s = self._clock()
        if core is not self._champion:
            self._flight.working(core.index, STEPPING, started_s)
        self._try(core, partial(self._take_in_mail, core))
        now_s = self._clock()
        if core is not self._champion:
            self._flight.slice(core.index, now_s - started_s, self._limits[core.name].max_slice_s)
        self._flight.resting(now_s)

    def _take_in_mail(self, core: SteppedCore) -> None:
        """As itself: a utility call in its mail may draw random numbers, and launches kernels on the current stream."""
        if core.has_mail():
            self._enter(core)
            core.take_in()

    def _next(self) -> SteppedCore | None:
        champion = self._champion
        wants = champion is not None and champion.has_work()
        if wants and not self._share.is_owed:
            return champion
        for core in self._cores:
            if core is not champion and core.has_work() and core.is_ready():
                return core
        return champion if wants else None

    def _step_champion(self, core: SteppedCore, *, someone_waits: bool = False) -> None:
        self._enter(core)
        started_s = self._clock()
        self._flight.working(core.index, STEPPING, started_s)
        tokens = core.step(None)
        self._champion_steps += 1
        now_s = self._clock()
        self._flight.slice(core.index, now_s - started_s, float("inf"))
        self._flight.step(core.index, tokens, 0)
        self._flight.resting(now_s)
        if someone_waits or any(each is not core and each.has_work() for each in self._cores):
            self._share.champion_took(now_s - started_s)

    def _step_challenger(self, core: SteppedCore) -> None:
        limit = self._limits[core.name]
        self._longest_work_s = 0.0
        self._enter(core)
        self._slice_starts(core, guaranteed=self._champion is not None and self._champion.has_work())
        tokens = 0

        def step() -> None:
            nonlocal tokens
            tokens = core.step(limit.tokens)

        self._stepping = core
        try:
            went_well = self._try(core, step)
        finally:
            self._stepping = None
        if went_well:
            launched = core.device_times()
            if launched is None:
                self._slice_ended(core)
                launched = [(tokens, self._longest_work_s)]
            else:
                if tokens:
                    self._launched_at[core.name].append(self._champion_steps)
                launched = [each for each in launched if self._was_alone(core, each[1])]
            for number, elapsed_s in launched:
                limit.saw(number, elapsed_s)
            self._flight.step(core.index, tokens, limit.tokens)
            if tokens:  # an empty one, as after each recovery, does not show that there is memory again
                self._faults.pop(core.name, None)
        else:  # the champion could have to wait for it all the same, and for its recovery
            self._slice_ended(core)
        self._flight.resting(self._clock())
        if core in self._cores:
            self._cores.remove(core)
            self._cores.append(core)

    def _was_alone(self, core: SteppedCore, elapsed_s: float) -> bool:
        """Enter what a launched step took of the device; whether the champion launched none meanwhile.

        The device's time of one that shared it has the champion's kernels in it: it says nothing of how large a step
        may be, and counts as what the longest took that did not.
        """
        launched_at = self._launched_at[core.name]
        alone = not launched_at or launched_at.popleft() == self._champion_steps
        longest_s = self._undisturbed_s.get(core.name, 0.0)
        if alone:
            self._undisturbed_s[core.name] = max(longest_s, elapsed_s)
        self._slice_took(core, elapsed_s if alone else min(elapsed_s, longest_s or elapsed_s))
        return alone

    def _slice_starts(self, core: SteppedCore, *, guaranteed: bool) -> None:
        self._guaranteed = guaranteed
        self._slice_started_s, self._slice_worked_s = self._clock(), self._worked()
        self._flight.working(core.index, STEPPING, self._slice_started_s)

    def _slice_ended(self, core: SteppedCore) -> None:
        self._longest_work_s = max(self._longest_work_s, self._worked() - self._slice_worked_s)
        self._slice_took(core, self._clock() - self._slice_started_s)

    def _slice_took(self, core: SteppedCore, elapsed_s: float) -> None:
        limit_s = self._limits[core.name].max_slice_s
        self._flight.slice(core.index, elapsed_s, limit_s, guaranteed=self._guaranteed)
        self._share.challenger_took(elapsed_s, champion_waited=self._guaranteed)

    def _enter(self, core: SteppedCore) -> None:
        if core is not self._current:
            if self._current is not None:
                self._current.leave()
            core.enter()
            self._current = core

    def _try(self, core: SteppedCore, operation: Callable[[], Any]) -> bool:
        """Whether it went well. A challenger's fault is its own; the champion's ends the process."""
        try:
            operation()
        except Exception as fault:
            traceback.print_exc()
            if core is self._champion:
                core.say_dead()
                raise
            self._fault(core, fault)
            return False
        return True

    def _fault(self, core: SteppedCore, fault: Exception) -> None:
        self._faults[core.name] = self._faults.get(core.name, 0) + 1
        if self._faults[core.name] <= RECOVERIES_IN_A_ROW and core.recover(fault):
            return
        core.say_dead()
        self._tell_dead(core.name, f"{type(fault).__name__}: {fault}")
        self._cores.remove(core)
