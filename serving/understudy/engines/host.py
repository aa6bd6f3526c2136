"""The engine process: one or more vLLM engine cores on one device, stepped by one driver.

Run as ``python -m understudy.engines.host`` by processes.py. stdin carries one JSON line (the plan) and then
nothing: its end means that the API process is gone, and this process ends with it, however it died. Events go
to the file descriptor named in the plan, one JSON object a line:

    {"event": "ready", "core": name, "load_s": 3.1, "weights": {...}}   in the order of the plan
    {"event": "failed", "core": name, "error": "..."}   it did not load; the others go on
    {"event": "dead", "core": name, "error": "..."}     it faulted while serving; the others go on

The first core is the champion's wherever there is one. If it cannot load or faults, the process ends. What the driver
is doing stands in the flight recorder, the file named in the plan (flight.py).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from vllm.platforms import current_platform

from understudy.engines import preempt, speculate
from understudy.engines.alias import alias, weights_of
from understudy.engines.core import Core, CorePlan
from understudy.engines.driver import Driver
from understudy.engines.flight import LOADING, Flight
from understudy.engines.memory import checkpoint_bytes, refuse_if_too_large
from understudy.engines.pace import Share, StepLimit

SEND_TIMEOUT_S = 5.0
FIRST_TOKENS = 64  # of a challenger's first step, before anything is known of its speed


class Events:
    """The way back to the API process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, event: str, core: str, **more: Any) -> None:
        """One line. A closed pipe means that nobody is left to tell."""
        self._stream.write(json.dumps({"event": event, "core": core, **more}) + "\n")
        self._stream.flush()


def prepare_cpu() -> None:
    """On the CPU the rank of a token is counted eagerly: compiling that one line costs seconds at start.

    vLLM compiles ``batched_count_greater_than`` with inductor at the first request for logprobs. Its sampler of drafted
    tokens is mended for every core, so that how a champion samples does not depend on whether a challenger speculates.
    """
    if current_platform.device_type == "cpu":
        from vllm.v1.sample import sampler
        from vllm.v1.sample.ops import logprobs

        compiled = logprobs.batched_count_greater_than
        eager = getattr(compiled, "_torchdynamo_orig_callable", compiled)  # plain where torch compiles nothing
        logprobs.batched_count_greater_than = eager
        sampler.batched_count_greater_than = eager
        speculate.mend_cpu_sampler()


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


def mend_worker(_worker: Any, engine_pid: int) -> None:
    """Of a model on several devices each has a worker process, and what is mended here is to be mended there too."""
    if os.getpid() != engine_pid:
        prepare_cpu()
        skip_absent_head_adapter()


def build(
    plans: Sequence[CorePlan], has_champion: bool, wake: threading.Event, events: Events, flight: Flight
) -> list[Core]:
    """Build the cores one after the other. A challenger that cannot be built is reported and left out."""
    cores: list[Core] = []
    for index, plan in enumerate(plans):
        is_champion = has_champion and index == 0
        flight.working(index, LOADING, time.monotonic())
        started = time.perf_counter()
        try:
            config, champion = plan.config(), cores[0] if has_champion and cores else None
            aliased = (
                champion is not None
                and champion.runner is not None
                and "load_format" not in plan.engine_args  # who says how to load wants it loaded
                and alias(config, champion.engine.vllm_config, champion.runner.model)
            )
            if current_platform.device_type == "cpu":  # CUDA refuses by itself
                refuse_if_too_large(plan.engine_args, aliased=aliased)
            cores.append(Core(plan, config, index, is_champion=is_champion, wake=wake))
            cores[-1].engine.model_executor.collective_rpc(mend_worker, args=(os.getpid(),))
            model = getattr(cores[-1].runner, "model", None)
            weights = weights_of(model, checkpoint_bytes(plan.engine_args["model"]))
        except Exception as fault:
            traceback.print_exc()
            events.send("failed", plan.name, error=f"{type(fault).__name__}: {fault}")
            if is_champion:
                flight.end()  # said and no crash
                raise SystemExit(1) from fault
        else:
            load_s = round(time.perf_counter() - started, 3)
            events.send("ready", plan.name, load_s=load_s, weights=asdict(weights))
        flight.resting(time.monotonic())
    return cores


def drive(cores: Sequence[Core], champion: Core | None, wake: threading.Event, events: Events, job: Job) -> None:
    """Step the cores for ever. Raises what the champion raised."""
    max_slice_s = job.max_step_ms / 1e3 if champion is not None else float("inf")  # alone there is nobody to wait
    driver = Driver(
        cores,
        champion,
        wake,
        lambda name, why: events.send("dead", name, error=why),
        job.flight,
        {core.name: step_limit(core, max_slice_s) for core in cores},
        Share(job.min_device_share, max_slice_s),
        worked=time.thread_time if current_platform.device_type == "cpu" else None,  # on a GPU it waits for the device
    )
    if champion is not None:
        for core in cores:
            if core is not champion and core.runner is not None:
                preempt.install(core.runner, driver.yield_to_champion)
    try:
        driver.run()
        job.flight.end()  # every core's fault was said
    finally:
        if champion is not None:
            champion.flush(SEND_TIMEOUT_S)


def step_limit(core: Core, max_slice_s: float) -> StepLimit:
    """Its limit, from a careful beginning; none where no slice is too long, or where a prompt has to fit a step."""
    if not core.cuts_prompts:
        max_slice_s = math.inf
    first = FIRST_TOKENS if math.isfinite(max_slice_s) else core.max_tokens
    return StepLimit(max_slice_s, core.max_tokens, first)


@dataclass(frozen=True, slots=True)
class Job:
    """The plan as it comes through stdin."""

    cores: tuple[CorePlan, ...]
    has_champion: bool
    events_fd: int
    flight: Flight
    max_step_ms: float
    min_device_share: float

    @staticmethod
    def read(line: str) -> Job:
        """From its JSON line."""
        raw = json.loads(line)
        cores = tuple(CorePlan(**core) for core in raw.pop("cores"))
        return Job(cores=cores, flight=Flight(Path(raw.pop("flight"))), **raw)


def end_with_parent(flight: Flight) -> None:
    """Leave when stdin ends, at once: a step under way is nobody's any more."""
    sys.stdin.read()
    flight.end()
    os._exit(0)


def main() -> None:
    """Read the plan, build the cores, drive them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the API process decides
    job = Job.read(sys.stdin.readline())
    job.flight.begin(os.getpid(), time.monotonic())
    threading.Thread(target=end_with_parent, args=(job.flight,), daemon=True, name="end-with-parent").start()
    events = Events(os.fdopen(job.events_fd, "w"))
    prepare_cpu()
    skip_absent_head_adapter()
    wake = threading.Event()
    cores = build(job.cores, job.has_champion, wake, events, job.flight)
    try:
        drive(cores, cores[0] if job.has_champion else None, wake, events, job)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(1)  # vLLM's threads are not daemons of ours; the cores are gone, and so are we


if __name__ == "__main__":
    main()
