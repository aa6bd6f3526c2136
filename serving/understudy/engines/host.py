"""The engine process: one or more vLLM engine cores on one device, stepped by one driver.

Run as ``python -m understudy.engines.host`` by processes.py. stdin carries one JSON line (the plan) and then
nothing: its end means that the API process is gone, and this process ends with it, however it died. Events go
to the file descriptor named in the plan, one JSON object a line:

    {"event": "ready", "core": name, "load_s": 3.1}     in the order of the plan
    {"event": "failed", "core": name, "error": "..."}   it did not load; the others go on
    {"event": "dead", "core": name, "error": "..."}     it faulted while serving; the others go on

The first core is the champion's wherever there is one. If it cannot load or faults, the process ends. Each core
is vLLM's EngineCoreProc with vLLM's own transport, so rows of two roles are never in one batch (law 1).
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import numpy
import psutil
import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor

from understudy.engines.memory import checkpoint_bytes


@dataclass(frozen=True, slots=True)
class CorePlan:
    """One core to build: vLLM's engine arguments and the two sockets of its client."""

    name: str
    engine_args: dict[str, Any]
    input_address: str
    output_address: str


class WakingQueue(queue.Queue[Any]):
    """An input queue that wakes the driver, so that one thread can wait for several cores."""

    def __init__(self, wake: threading.Event) -> None:
        super().__init__()
        self._wake = wake

    def put_nowait(self, item: Any) -> None:
        """Called by the core's socket thread."""
        super().put_nowait(item)
        self._wake.set()


class Core(EngineCoreProc):
    """vLLM's engine core with its sockets given instead of negotiated, and without a loop of its own."""

    process_input_queue_block: bool

    def __init__(self, plan: CorePlan, wake: threading.Event) -> None:
        self._wake = wake
        self._plan = plan
        self.busy_s = 0.0
        config = AsyncEngineArgs(**plan.engine_args).create_engine_config()
        super().__init__(
            config,
            True,
            "",
            Executor.get_class(config),
            log_stats=not plan.engine_args.get("disable_log_stats"),
        )
        self.process_input_queue_block = False
        self.understudy_leave()

    @property
    def input_queue(self) -> WakingQueue:
        """vLLM assigns a plain queue in its constructor; what is kept is one that wakes the driver."""
        return self._input_queue

    @input_queue.setter
    def input_queue(self, _plain: queue.Queue[Any]) -> None:
        self._input_queue = WakingQueue(self._wake)

    @contextmanager
    def _perform_handshakes(self, *_args: Any, **_kwargs: Any) -> Generator[EngineZmqAddresses, None, None]:
        yield EngineZmqAddresses(inputs=[self._plan.input_address], outputs=[self._plan.output_address])

    def understudy_enter(self) -> None:
        """Continue this core's own random streams. Unseeded sampling draws from the process's generators."""
        torch.set_rng_state(self._random[0])
        numpy.random.set_state(self._random[1])
        random.setstate(self._random[2])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(self._random[3])

    def understudy_leave(self) -> None:
        """Keep them for the next time, so that no other core's draws move them (law 1)."""
        device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        self._random = (torch.get_rng_state(), numpy.random.get_state(), random.getstate(), device)

    def understudy_busy_s(self) -> float:
        """Utility call of the API process: seconds of steps so far."""
        return self.busy_s

    def understudy_step(self) -> None:
        """One step, timed."""
        started = time.perf_counter()
        self._process_engine_step()
        self.busy_s += time.perf_counter() - started

    def understudy_say_dead(self) -> None:
        """Tell the client; unlike vLLM's own, do not wait for it: the other cores have work."""
        self.output_queue.put_nowait(EngineCoreProc.ENGINE_CORE_DEAD)


class Driver:
    """Steps the champion whenever it has work, and in the gaps the challengers in turn."""

    def __init__(self, cores: Sequence[Core], champion: Core | None, wake: threading.Event, events: Events) -> None:
        self._cores = list(cores)  # the champion first; a challenger that was stepped goes to the end
        self._champion = champion
        self._current: Core | None = None
        self._wake = wake
        self._events = events

    def run(self) -> None:
        """Never returns while a core is alive. Raises what the champion raised."""
        while self._cores:
            self._wake.clear()
            for core in list(self._cores):
                self._try(core, core._process_input_queue)
            busy = next((core for core in self._cores if core.has_work()), None)
            if busy is None:
                self._wake.wait()
            else:
                self._enter(busy)
                self._try(busy, busy.understudy_step)
                if busy is not self._champion and busy in self._cores:
                    self._cores.remove(busy)
                    self._cores.append(busy)

    def _enter(self, core: Core) -> None:
        if core is not self._current:
            if self._current is not None:
                self._current.understudy_leave()
            core.understudy_enter()
            self._current = core

    def _try(self, core: Core, operation: Any) -> None:
        try:
            operation()
        except Exception as fault:
            traceback.print_exc()
            core.understudy_say_dead()
            self._events.send("dead", core._plan.name, error=f"{type(fault).__name__}: {fault}")
            self._cores.remove(core)
            if core is self._champion:
                core.output_thread.join(timeout=5.0)
                raise


class Events:
    """The way back to the API process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, event: str, core: str, **more: Any) -> None:
        """One line. A closed pipe means that nobody is left to tell."""
        self._stream.write(json.dumps({"event": event, "core": core, **more}) + "\n")
        self._stream.flush()


def refuse_if_too_large(plan: CorePlan) -> None:
    """Raise MemoryError before the kernel has to kill something (the CPU only: CUDA refuses by itself)."""
    if current_platform.device_type != "cpu":
        return
    needed = checkpoint_bytes(plan.engine_args["model"]) + (plan.engine_args.get("kv_cache_memory_bytes") or 0)
    available = psutil.virtual_memory().available
    if needed > available:
        raise MemoryError(
            f"{plan.name} needs {needed / 2**30:.1f} GiB (weights and kv_cache_memory_bytes), "
            f"{available / 2**30:.1f} GiB are available"
        )


def prepare_cpu() -> None:
    """On the CPU the rank of a token is counted eagerly: compiling that one line costs seconds at start.

    vLLM compiles ``batched_count_greater_than`` with inductor at the first request for logprobs.
    """
    if current_platform.device_type == "cpu":
        from vllm.v1.sample import sampler
        from vllm.v1.sample.ops import logprobs

        compiled = logprobs.batched_count_greater_than
        eager = getattr(compiled, "_torchdynamo_orig_callable", compiled)  # plain where torch compiles nothing
        logprobs.batched_count_greater_than = eager
        sampler.batched_count_greater_than = eager


def skip_absent_head_adapter() -> None:
    """Let an adapter that leaves lm_head alone leave the logits alone too.

    vLLM adds a LoRA term to every row of logits, with an index that has one entry for each sampled row. Prompt
    logprobs ask for more rows than that, and the engine dies ("einsum(): subscript b has size ..."). Where no
    adapter has weights for lm_head the term is zero; here it is not computed.
    """
    from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA as Adapted

    set_lora, get_logits = Adapted.set_lora, Adapted._get_logits

    def set_and_remember(self: Any, *args: Any, **kwargs: Any) -> None:
        self.understudy_adapts_head = True
        set_lora(self, *args, **kwargs)

    def get_without_adapter(self: Any, hidden_states: Any, lm_head: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "understudy_adapts_head", False):
            return get_logits(self, hidden_states, lm_head, *args, **kwargs)
        head = getattr(lm_head, "base_layer", lm_head)
        return self.base_layer._get_logits(hidden_states, head, *args, **kwargs)

    Adapted.set_lora = set_and_remember
    Adapted._get_logits = get_without_adapter


def build(plans: Sequence[CorePlan], has_champion: bool, wake: threading.Event, events: Events) -> list[Core]:
    """Build the cores one after the other. A challenger that cannot be built is reported and left out."""
    cores: list[Core] = []
    for index, plan in enumerate(plans):
        started = time.perf_counter()
        try:
            refuse_if_too_large(plan)
            cores.append(Core(plan, wake))
        except Exception as fault:
            traceback.print_exc()
            events.send("failed", plan.name, error=f"{type(fault).__name__}: {fault}")
            if has_champion and index == 0:
                raise SystemExit(1) from fault
        else:
            events.send("ready", plan.name, load_s=round(time.perf_counter() - started, 3))
    return cores


def end_with_parent() -> None:
    """Leave when stdin ends, at once: a step under way is nobody's any more."""
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Read the plan, build the cores, drive them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the API process decides
    plan = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True, name="end-with-parent").start()
    events = Events(os.fdopen(plan["events_fd"], "w"))
    prepare_cpu()
    skip_absent_head_adapter()
    wake = threading.Event()
    cores = build([CorePlan(**core) for core in plan["cores"]], plan["has_champion"], wake, events)
    champion = cores[0] if plan["has_champion"] else None
    try:
        Driver(cores, champion, wake, events).run()
    finally:
        os._exit(1)  # vLLM's threads are not daemons of ours; the cores are gone, and so are we


if __name__ == "__main__":
    main()
