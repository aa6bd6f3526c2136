"""Faults for a running server, switched on and off by a file. Python imports this where its folder is on PYTHONPATH.

``UNDERSTUDY_CHAOS`` names the file; it holds the name of the fault that is on and whom it hits, or nothing. What a
fault replaces is replaced when its module is imported, in whichever process that is, and asks the file each time it is
called. Only the challengers are touched (cores and engines that are not called ``champ``), the comparators, the record
and the metrics. The faults in ``once`` happen a single time and empty the file: they may take the process with them,
and its successor must not meet them again. They hit whom they name, the champion too.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

SWITCH = os.environ.get("UNDERSTUDY_CHAOS", "")
CHAMPION = "champ"
SLOW_STEP_S = 0.4  # a step of the models used here takes about 4 ms


class Injected(RuntimeError):
    """What a broken part raises here."""


def fault() -> tuple[str, str]:
    """The fault that is on, and which challenger it hits ("" hits every one)."""
    try:
        with open(SWITCH, encoding="utf-8") as file:  # noqa: PTH123  # sitecustomize runs before anything else
            name, _, target = file.read().strip().partition(" ")
            return name, target
    except OSError:
        return "", ""


def is_on(name: str, who: str = "") -> bool:
    """Whether this fault is on, for this challenger."""
    on, target = fault()
    return on == name and (not target or not who or target == who)


def is_first(core: Any) -> bool:
    """Whether this step is the first with a request since the switch was turned: a fault that happens once."""
    if not core.engine.scheduler.has_unfinished_requests():  # a step that only tidies up has nobody to end
        return False
    turned = os.stat(SWITCH).st_mtime_ns  # noqa: PTH116
    last, core.chaos_turned = getattr(core, "chaos_turned", 0), turned
    return bool(last != turned)


def wait_while(name: str, who: str) -> None:
    """A call that does not return before the fault is switched off."""
    while is_on(name, who):
        time.sleep(0.05)


# engine processes


def hang() -> None:
    """As native code does that holds the interpreter's lock."""
    ctypes.PyDLL(None).sleep(3600)


def run_out_of_memory() -> None:
    """As an allocation does."""
    raise MemoryError("injected: no memory in a forward pass")


def end_by(number: int) -> Callable[[], None]:
    """The whole process, by a signal."""
    return lambda: os.kill(os.getpid(), number)


once: dict[str, Callable[[], None]] = {
    "native_hang": hang,
    "memory_error": run_out_of_memory,
    "abort": os.abort,
    "segfault": end_by(signal.SIGSEGV),
    "kill": end_by(signal.SIGKILL),
}


def take_order(core: Any) -> None:
    """A fault of ``once`` for this core: in its next forward pass, after the layers."""
    name, target = fault()
    if name in once and target == core.name:
        with open(SWITCH, "w", encoding="utf-8"):  # noqa: PTH123
            pass
        model, compute_logits = core.runner.model, core.runner.model.compute_logits

        def broken_logits(*args: Any, **kwargs: Any) -> Any:
            model.compute_logits = compute_logits
            once[name]()
            return compute_logits(*args, **kwargs)

        model.compute_logits = broken_logits


def patch_core(module: Any) -> None:
    """A step."""
    import torch

    step, build = module.Core.step, module.Core.__init__

    def broken_step(self: Any, max_tokens: int | None) -> int:
        take_order(self)
        if self.name == CHAMPION:
            return int(step(self, max_tokens))
        if is_on("step_raises", self.name):
            raise Injected("a step that raises")
        if is_on("step_out_of_memory", self.name) and is_first(self):
            raise torch.OutOfMemoryError("injected: no memory in a step")
        if is_on("step_allocates", self.name):
            torch.empty(2**36, dtype=torch.uint8).fill_(1)
        wait_while("step_hangs", self.name)
        if is_on("step_slow", self.name):
            time.sleep(SLOW_STEP_S)
        return int(step(self, max_tokens))

    def built(self: Any, plan: Any, *args: Any, **kwargs: Any) -> None:
        if is_on("never_loads", plan.name):
            hang()
        build(self, plan, *args, **kwargs)
        if self.name != CHAMPION:
            break_runner(self)

    module.Core.step, module.Core.__init__ = broken_step, built


def break_runner(core: Any) -> None:
    """What its layers give, and what it does for a score. Scoring is put around these later (engines/scorer.py)."""
    import torch

    runner, name = core.runner, core.name
    forward, prompt_logprobs = runner._model_forward, runner._get_prompt_logprobs_dict

    def broken_forward(*args: Any, **kwargs: Any) -> Any:
        hidden = forward(*args, **kwargs)
        if is_on("model_nan", name):
            return torch.full_like(hidden, float("nan"))
        if is_on("answer_nan", name):  # as of an input that only its own answers have
            ends = runner.query_start_loc.np
            for row, request_id in enumerate(runner.input_batch.req_ids):
                if not (runner.requests[request_id].sampling_params.extra_args or {}).get("understudy_score"):
                    hidden[ends[row] : ends[row + 1]] = float("nan")
        return hidden

    def broken_scores(hidden: Any, num_scheduled: Any) -> Any:
        requests = [runner.requests[each] for each in num_scheduled]
        if any(getattr(each, "understudy_reading", None) for each in requests) and is_on("score_raises", name):
            raise Injected("a score that raises")
        return prompt_logprobs(hidden, num_scheduled)

    runner._model_forward, runner._get_prompt_logprobs_dict = broken_forward, broken_scores


# the API process


def patch_engine(module: Any) -> None:
    """Tokenising for a challenger that renders the messages itself."""
    render = module.VllmEngine._render

    def broken_render(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_on("tokenizer_raises", self.name):
            raise Injected("a tokenizer that raises")
        return render(self, *args, **kwargs)

    module.VllmEngine._render = broken_render


def patch_comparator(module: Any) -> None:
    """One comparator of several."""
    compare = module.compare

    def broken_compare(*args: Any, **kwargs: Any) -> Any:
        if is_on("comparator_raises"):
            raise Injected("a comparator that raises")
        return compare(*args, **kwargs)

    module.compare = broken_compare


def patch_scribe(module: Any) -> None:
    """Turning an event into a line."""
    append = module.Scribe.append

    def broken_append(*args: Any, **kwargs: Any) -> Any:
        if is_on("record_raises"):
            raise Injected("a record writer that raises")
        return append(*args, **kwargs)

    module.Scribe.append = broken_append


def patch_log(module: Any) -> None:
    """Writing lines: what the kernel would say of a full or read-only disk."""
    write = module.SegmentLog._write

    def broken_write(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, number in (("disk_full", errno.ENOSPC), ("disk_read_only", errno.EROFS)):
            if is_on(name):
                raise OSError(number, os.strerror(number))
        write(self, *args, **kwargs)

    module.SegmentLog._write = broken_write


def patch_publish(module: Any) -> None:
    """What the metrics hear of an exchange."""
    observe = module.ExchangeMetrics._observe

    def broken_observe(*args: Any, **kwargs: Any) -> None:
        if is_on("metrics_raise"):
            raise Injected("metrics that raise")
        observe(*args, **kwargs)

    module.ExchangeMetrics._observe = broken_observe


def patch_exposition(module: Any) -> None:
    """What is shown to a scraper."""
    collect = module.Exposition.collect

    def broken_collect(self: Any) -> Any:
        if is_on("metrics_raise"):
            raise Injected("an exporter that raises")
        return collect(self)

    module.Exposition.collect = broken_collect


PATCHES: dict[str, Callable[[Any], None]] = {
    "understudy.engines.core": patch_core,
    "understudy.engines.vllm_engine": patch_engine,
    "understudy.compare.agreement": patch_comparator,
    "understudy.record.scribe": patch_scribe,
    "understudy.record.log": patch_log,
    "understudy.meter.publish": patch_publish,
    "understudy.meter.exposition": patch_exposition,
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: where the others find a module of the table, its patch runs after it was executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As importlib asks."""
        if name not in PATCHES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)  # type: ignore[attr-defined]
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def execute_and_patch(module: Any, execute: Any = execute) -> None:
                    execute(module)
                    PATCHES[name](module)

                spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
                return spec
        return None


if SWITCH:
    sys.meta_path.insert(0, Finder())
