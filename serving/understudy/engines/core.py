"""A core: vLLM's EngineCoreProc as the driver steps it. The only one that knows both.

Each core is vLLM's own, with vLLM's own transport, so rows of two roles are never in one batch (law 1). What vLLM has
once for a whole process is each core's own here, and changes hands when another core is stepped: the random
generators, the CUDA stream and the workspace.
"""

from __future__ import annotations

import queue
import random
import sys
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.random import MT19937
from numpy.random.mtrand import set_bit_generator
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor
from vllm.v1.request import RequestStatus
from vllm.v1.worker import workspace

from understudy.engines import finite, scorer, seeds, speculate
from understudy.engines.footprint import allocator, footprint

HIGH_PRIORITY, LOW_PRIORITY = -1, 0  # of CUDA streams: lower is more urgent


@dataclass(frozen=True, slots=True)
class CorePlan:
    """One core to build: vLLM's engine arguments and the two sockets of its client."""

    name: str
    engine_args: dict[str, Any]
    input_address: str
    output_address: str

    def config(self) -> VllmConfig:
        """vLLM's whole configuration for it. Raises what vLLM raises for arguments that cannot be right."""
        return AsyncEngineArgs(**self.engine_args).create_engine_config()


class WakingQueue(queue.Queue[Any]):
    """An input queue that wakes the driver, so that one thread can wait for several cores."""

    def __init__(self, wake: threading.Event) -> None:
        super().__init__()
        self._wake = wake

    def put_nowait(self, item: Any) -> None:
        """Called by the core's socket thread."""
        super().put_nowait(item)
        self._wake.set()


class Engine(EngineCoreProc):
    """vLLM's engine core with its sockets given instead of negotiated, and without a loop of its own."""

    process_input_queue_block: bool

    def __init__(self, plan: CorePlan, config: VllmConfig, wake: threading.Event) -> None:
        self._wake = wake
        self._plan = plan
        executor = Executor.get_class(config)
        super().__init__(config, True, "", executor, log_stats=not plan.engine_args.get("disable_log_stats"))
        self.process_input_queue_block = False
        speculate.attach(self)
        self._footprint: dict[str, int | None] | None = None

    def understudy_memory(self) -> dict[str, Any]:
        """Utility call of the API process: bytes that this model holds; counted at the first call."""
        if self._footprint is None:
            self._footprint = footprint(self, self._plan.name)
        return {**self._footprint, "allocator": allocator()}

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

    def understudy_start_scoring(self) -> dict[str, str]:
        """Utility call of a challenger's client: score from now on; which path, and why no better one."""
        return scorer.install(self)


ATTENTION = "vllm.v1.attention.backends"
SCRATCH = (
    (f"{ATTENTION}.flashinfer", "trtllm_workspace_buffer"),
    (f"{ATTENTION}.mla.flashinfer_mla", "_fi_workspace"),
    (f"{ATTENTION}.mla.flashinfer_mla", "_fi_multi_ctas_kv_counter"),
    (f"{ATTENTION}.mla.flashinfer_mla_sparse", "_fi_sparse_workspace"),
)
"""Where vLLM 0.32 keeps scratch memory of an attention backend for the process: two streams would write to one."""


def loaded_scratch() -> list[tuple[str, str]]:
    """Those of the modules that are there: a backend that nobody uses is not imported."""
    return [(module, name) for module, name in SCRATCH if hasattr(sys.modules.get(module), name)]


@dataclass
class ProcessState:
    """What one core keeps of what the process has only once, from when it was built until now.

    Unseeded sampling draws from the generators, so without this a challenger's draws would move the champion's (law 1).
    numpy's is changed by exchanging the generator itself, which takes 1 us; copying its state takes 45.
    """

    stream: Any = None
    bits: Any = field(default_factory=MT19937)
    _torch: torch.Tensor = field(init=False)
    _python: Any = field(init=False)
    _cuda: torch.Tensor | None = field(init=False)
    _workspace: Any = field(init=False)
    _scratch: dict[tuple[str, str], Any] = field(init=False, default_factory=dict)

    def keep(self) -> None:
        """Take over what the process has now."""
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._cuda = torch.cuda.get_rng_state() if self.stream is not None else None
        self._workspace = workspace._manager
        self._scratch = {(module, name): getattr(sys.modules[module], name) for module, name in loaded_scratch()}

    def restore(self) -> None:
        """Give it back to the process."""
        torch.default_generator.set_state(self._torch)
        set_bit_generator(self.bits)
        random.setstate(self._python)
        workspace._manager = self._workspace
        for module, name in loaded_scratch():
            setattr(sys.modules[module], name, self._scratch.get((module, name)))
        if self.stream is not None:
            torch.cuda.set_stream(self.stream)
            torch.cuda.set_rng_state(self._cuda)


class Core:
    """See driver.SteppedCore for the contract.

    Args:
        plan: what to build.
        config: from ``plan.config()``, changed where its weights are to be shared.
        index: its place in the flight recorder, and in the plan; the champion is the first.
        is_champion: its kernels are launched on a stream of high priority.
        wake: set when its client sends something.
    """

    def __init__(
        self, plan: CorePlan, config: VllmConfig, index: int, *, is_champion: bool, wake: threading.Event
    ) -> None:
        self.name = plan.name
        self.index = index
        workspace._manager = None  # each core's own: it is locked after a core has warmed up
        for module, scratch in loaded_scratch():
            setattr(sys.modules[module], scratch, None)
        self._state = ProcessState(new_stream(HIGH_PRIORITY if is_champion else LOW_PRIORITY))
        if self._state.stream is not None:
            torch.cuda.set_stream(self._state.stream)
        set_bit_generator(self._state.bits)
        self.engine = Engine(plan, config, wake)
        self._num_scheduled = 0
        self._launched: deque[tuple[int, Any, Any]] = deque()
        self._count_tokens()
        seeds.install(self.engine)
        if not is_champion:
            finite.install(self.engine, self.runner)
        self.leave()

    def has_mail(self) -> bool:
        """A look at the queue without its lock."""
        return bool(self.engine.input_queue.queue) or bool(self.engine._idle_state_callbacks)

    def take_in(self) -> None:
        """vLLM's own."""
        self.engine._process_input_queue()

    def has_work(self) -> bool:
        """vLLM's own."""
        return bool(self.engine.has_work())

    def is_ready(self) -> bool:
        """False while the device has not finished the oldest step that was launched."""
        launched = self.engine.batch_queue
        return not launched or is_done(launched[-1][0])

    def enter(self) -> None:
        """Its own generators, stream and workspace become the process's."""
        self._state.restore()

    def leave(self) -> None:
        """Keep them."""
        self._state.keep()

    def step(self, max_tokens: int | None) -> int:
        """One of vLLM's steps; how many tokens it scheduled.

        The scheduler reads its limit at every step. Rows that find no room wait for the next step in the order in
        which they came, so a low limit finishes one request after the other.
        """
        self._num_scheduled = 0
        if max_tokens is not None:
            self.engine.scheduler.max_num_scheduled_tokens = max_tokens
        begin = self._event() if max_tokens is not None else None  # nobody asks for the champion's
        self.engine._process_engine_step()
        if begin is not None and self._num_scheduled:
            self._launched.append((self._num_scheduled, begin, self._event()))
        return self._num_scheduled

    def device_times(self) -> list[tuple[int, float]] | None:
        """By CUDA events around each launch; None where nothing is launched ahead."""
        if self._state.stream is None or self.engine.batch_queue is None:
            return None
        ended = []
        while self._launched and self._launched[0][2].query():
            tokens, begin, end = self._launched.popleft()
            ended.append((tokens, begin.elapsed_time(end) / 1e3))
        return ended

    def _event(self) -> Any:
        if self._state.stream is None or self.engine.batch_queue is None:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._state.stream)
        return event

    def recover(self, fault: Exception) -> bool:
        """After out-of-memory: end its requests with that reason, give cached memory back, and go on."""
        if not isinstance(fault, MemoryError | torch.OutOfMemoryError):
            return False
        engine = self.engine
        if engine.batch_queue:
            engine.batch_queue.clear()
        ended = defaultdict(list)
        for request in engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED):
            ended[request.client_index].append(request.request_id)
        # vLLM enters blocks in the prefix cache before the pass that fills them, and this one did not.
        if not engine.scheduler.reset_prefix_cache():
            return False
        for client, request_ids in ended.items():
            outputs = [
                EngineCoreOutput(each, [], finish_reason=FinishReason.ERROR, stop_reason="out_of_memory")
                for each in request_ids
            ]
            finished = EngineCoreOutputs(outputs=outputs, finished_requests=set(request_ids))
            engine.output_queue.put_nowait((client, finished))
        runner = self.runner
        if getattr(runner, "execute_model_state", None) is not None:
            runner.execute_model_state = None
        traceback.clear_frames(fault.__traceback__)  # they hold the tensors of the pass that failed
        torch.accelerator.empty_cache()
        return True

    def say_dead(self) -> None:
        """Unlike vLLM's own, do not wait for it to be sent: the other cores have work."""
        self.engine.output_queue.put_nowait(EngineCoreProc.ENGINE_CORE_DEAD)

    def flush(self, timeout_s: float) -> None:
        """Wait until what was said is sent."""
        self.engine.output_thread.join(timeout=timeout_s)

    @property
    def runner(self) -> Any:
        """vLLM's model runner; None where it is in processes of its own (tensor parallelism)."""
        worker = getattr(self.engine.model_executor, "driver_worker", None)
        return None if worker is None else worker.worker.model_runner

    @property
    def cuts_prompts(self) -> bool:
        """Whether a step may read a part of a prompt; a limit below the prompt's length would shut it out for ever."""
        return bool(self.engine.vllm_config.scheduler_config.enable_chunked_prefill)

    @property
    def max_tokens(self) -> int:
        """The most that a step may have."""
        return int(self.engine.scheduler.max_num_scheduled_tokens)

    def _count_tokens(self) -> None:
        schedule = self.engine.scheduler.schedule

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self._num_scheduled = output.total_num_scheduled_tokens
            return output

        self.engine.scheduler.schedule = counted


def new_stream(priority: int) -> Any:
    """A CUDA stream of its own, or None without CUDA."""
    return torch.cuda.Stream(priority=priority) if torch.cuda.is_available() else None


def is_done(future: Any) -> bool:
    """Whether the result of a launched step can be had without waiting for the device.

    vLLM's future for it asks the device only when it is asked for the result; the event is what it would wait for:
    ``async_copy_ready_event`` in model runner V1, ``copy_event`` in V2.
    """
    if future.done():
        return True
    output = getattr(future, "async_output", None)
    event = getattr(output, "async_copy_ready_event", None) or getattr(output, "copy_event", None)
    return event is None or bool(event.query())
