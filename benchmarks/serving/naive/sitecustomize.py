"""The naive arm: a driver that steps the engines in turn and knows no champion. Switched on by a file, at run time.

Python imports this where its folder is on PYTHONPATH. ``UNDERSTUDY_NAIVE`` names the file; while it exists, whoever has
work and was not stepped last goes next, steps are as large as vLLM's own limit, and nothing is interrupted.
"""

from __future__ import annotations

import importlib.abc
import os
import sys
import time
from typing import Any

SWITCH = os.environ.get("UNDERSTUDY_NAIVE", "")
LOOK_EVERY_S = 0.05
MODULE = "understudy.engines.driver"


class Switch:
    """Whether the file is there; looked up seldom, since the driver asks at each step."""

    def __init__(self) -> None:
        self._looked_s, self._is_on = 0.0, False

    def is_on(self) -> bool:
        """As of at most LOOK_EVERY_S ago."""
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_EVERY_S:
            self._looked_s, self._is_on = now_s, os.path.exists(SWITCH)  # noqa: PTH110  # before anything else
        return self._is_on


def patch(driver: Any, switch: Switch) -> None:
    """Replace what makes the driver prefer the champion."""
    next_core, yield_to_champion, step_challenger = driver._next, driver.yield_to_champion, driver._step_challenger
    last: list[Any] = [None]

    def in_turn(self: Any) -> Any:
        if not switch.is_on():
            return next_core(self)
        waiting = [core for core in self._cores if core.has_work()]
        others = [core for core in waiting if core is not last[0]]
        last[0] = (others or waiting or [None])[0]
        return last[0]

    def yield_to_nobody(self: Any) -> None:
        if not switch.is_on():
            yield_to_champion(self)

    def step_whole(self: Any, core: Any) -> None:
        if not switch.is_on():
            step_challenger(self, core)
            return
        limit = self._limits[core.name]
        usual, limit.tokens = limit.tokens, limit._max_tokens
        step_challenger(self, core)
        limit.tokens = usual  # the next arm's steps begin as small as the last ones were

    driver._next, driver.yield_to_champion, driver._step_challenger = in_turn, yield_to_nobody, step_whole


class Finder(importlib.abc.MetaPathFinder):
    """Lets the others find the driver, and patches it after it was executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As importlib asks."""
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def execute_and_patch(module: Any, execute: Any = execute) -> None:
                    execute(module)
                    patch(module.Driver, Switch())

                spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
                return spec
        return None


if SWITCH:
    sys.meta_path.insert(0, Finder())
