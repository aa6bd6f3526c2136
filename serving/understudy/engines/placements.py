"""Which engine process holds which core, and what every core gets by default.

    shared      one engine process with all cores on one device; one driver steps them
    dedicated   one engine process a model, each with its own devices

Both give the API process the same thing: Engines, with vLLM's AsyncLLM for the champion and an Engine for each
challenger. One that does not come up is an Engine that is not ready and says why; only the champion must come up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from understudy.config import Config, ModelSpec, ShadowSpec
from understudy.engines import flight, speculate
from understudy.engines.base import Engine
from understudy.engines.fake import AbsentEngine
from understudy.engines.flight import ACTIVITIES, LOADING
from understudy.engines.processes import CoreSpec, Deaths, EngineProcess, socket_folder
from understudy.engines.quarantine import Quarantine
from understudy.engines.watchdog import Watch, watch
from understudy.errors import ConfigError, EngineStartError
from understudy.meter.traffic import Traffic

if TYPE_CHECKING:
    from understudy.engines.core_meter import CoreMeter

log = logging.getLogger(__name__)

GIB = 2**30
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as max_lora_rank
CHAMPION_KV_CPU_BYTES = 2 * GIB
CHALLENGER_KV_CPU_BYTES = 1 * GIB
FLOOR = "(noise floor)"  # no model of the configuration: its core's name in the log and in events
LOOK_S = 1.0  # between two looks at who is loading
FLOOR_KV_PART = 4  # of the champion's KV cache
# A challenger step is what the champion may have to wait for in the shared placement, so it is kept small.
MAX_STEP_CPU_MS, MAX_STEP_GPU_MS = 3.0, 10.0
CHALLENGER_STEP = {"max_num_seqs": 16, "max_num_batched_tokens": 512}


@dataclass
class Engines:
    """Everything that runs a model. ``champion`` is vLLM's AsyncLLM; it must be alive, but in a replay it is None."""

    champion: Any
    challengers: Sequence[Engine]
    processes: list[EngineProcess]
    folder: str
    champion_dead: asyncio.Event
    quarantine: Quarantine
    home: Path
    """Where the flight recorders are."""
    _watching: asyncio.Task[None] | None = field(default=None, init=False)
    traffic: Traffic = field(default_factory=Traffic)
    """The champion's; each challenger has its own."""
    meters: list[tuple[Sequence[int], list[CoreMeter]]] = field(default_factory=list)
    """For each engine process: its devices, and the engines that came up in it, the champion first."""
    floor: Engine | None = None
    """The champion's model once more, on a core beside it, where ``shadow.noise_floor`` or ``divergence`` asks."""
    tokenizer: Any = None
    """The champion's."""

    def champion_load(self) -> int:
        """How many requests the champion is answering now."""
        return 0 if self.champion is None else int(self.champion.get_num_unfinished_requests())

    async def close(self) -> None:
        """End every process and remove the sockets. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
        others = (*self.challengers, *([] if self.floor is None else [self.floor]))
        await asyncio.gather(*(each.close() for each in others), return_exceptions=True)
        try:
            if self.champion is not None:
                self.champion.shutdown()
        finally:
            await asyncio.gather(*(process.close() for process in self.processes), return_exceptions=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def crashed(self, process: EngineProcess, why: str) -> None:
        """A process ended by itself. One with the champion in it may have been taken down by a challenger."""
        if process.has_champion:
            self.quarantine.crashed(process.flight, why)
        else:
            process.flight.end()

    def watch(self, hang_s: float, deaths: Deaths) -> None:
        """From now on a challenger that hangs is ended."""
        watches = [
            Watch(process.activity, process.has_champion, hang_s, partial(self._hangs, process, deaths))
            for process in self.processes
        ]
        self._watching = asyncio.create_task(watch(watches, time.monotonic), name="watchdog")

    def _hangs(self, process: EngineProcess, deaths: Deaths, core: int | None, why: str) -> None:
        process.kill()  # first: to enter who it was may take as long as a disk that does not answer
        name = process.specs[core or 0].name
        if process.has_champion:
            self.quarantine.put_in(name, f"it hung: it {why}, so the engine process was ended")
        else:
            deaths.tell(name, f"it hung: it {why}, so its engine process was ended")


def group_shared(models: Sequence[ModelSpec]) -> list[list[int]]:
    """One group with every model, by index; the device is the champion's.

    Raises:
        ConfigError: a challenger names devices of its own.
    """
    named = next((model.name for model in models[1:] if model.devices), None)
    if named is not None:
        raise ConfigError(f"{named}.devices: placement 'shared' has one device, the champion's")
    return [list(range(len(models)))]


def group_dedicated(models: Sequence[ModelSpec]) -> list[list[int]]:
    """One group a model; on a GPU machine each must say its devices, and none may be named twice.

    Raises:
        ConfigError: a model has no devices, or shares one.
    """
    named = [device for model in models for device in model.devices]
    if gpu_present():
        if any(not model.devices for model in models):
            raise ConfigError("devices: placement 'dedicated' needs the devices of every model, such as [0]")
        if len(set(named)) != len(named):
            raise ConfigError(f"devices: {named} names a device twice; dedicated models share none")
    return [[index] for index in range(len(models))]


PLACEMENTS: Mapping[str, Callable[[Sequence[ModelSpec]], list[list[int]]]] = {
    "shared": group_shared,
    "dedicated": group_dedicated,
}


def gpu_present() -> bool:
    """Whether this machine shows an NVIDIA device. Asks the kernel, not CUDA: nothing is initialised here."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/gpus").exists()


def has_cxx_compiler() -> bool:
    """Whether torch can compile for the CPU here. Without one vLLM dies at its first compiled line."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"))


def engine_args(model: ModelSpec, *, champion: bool, shared: bool, speculative: bool = False) -> dict[str, Any]:
    """vLLM's engine arguments for a model: ours where the user said nothing, the user's as they are.

    Args:
        speculative: a challenger generates with the champion's answer as the draft, where its arguments allow it.
    """
    ours: dict[str, Any] = {
        "model": model.model,
        "served_model_name": [model.name],
        "enable_prefix_caching": True,
    }
    if not gpu_present():
        ours["kv_cache_memory_bytes"] = CHAMPION_KV_CPU_BYTES if champion else CHALLENGER_KV_CPU_BYTES
        if not parallel_args(model.engine_args):  # else vLLM's own choice: a process for each rank
            ours["distributed_executor_backend"] = "uni"
        ours["enforce_eager"] = not has_cxx_compiler()
    elif "kv_cache_memory_bytes" not in model.engine_args:
        raise ConfigError(
            f"{model.name}.engine_args.kv_cache_memory_bytes: must be set on a GPU; what is free now is no plan"
        )
    if shared and not champion:
        ours |= CHALLENGER_STEP
        if gpu_present():  # vLLM asks for this share of the whole device to be free, although the KV size is given
            ours["gpu_memory_utilization"] = 0.01
    if model.lora is not None:
        ours |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(model.lora)}
    if speculative and not champion:
        ours |= speculate.speculative_args(ours | dict(model.engine_args))
    return ours | dict(model.engine_args)


def parallel_args(args: Mapping[str, Any]) -> list[str]:
    """The engine arguments that spread a model over several processes."""
    return [name for name in ("tensor_parallel_size", "pipeline_parallel_size") if (args.get(name) or 1) > 1]


def floor_model(champion: ModelSpec) -> ModelSpec:
    """The champion once more, in steps as small as a challenger's and with a cache that is no larger than theirs.

    Raises:
        ConfigError: the champion's model runs in several processes, beside which no second core can be.
    """
    args = dict(champion.engine_args)
    parallel = parallel_args(args)
    if parallel:
        raise ConfigError(f"champion.engine_args.{parallel[0]}: {args[parallel[0]]}: then there is no noise floor")
    kv_bytes = args.get("kv_cache_memory_bytes") or CHAMPION_KV_CPU_BYTES
    mine = {"kv_cache_memory_bytes": kv_bytes // FLOOR_KV_PART, **CHALLENGER_STEP, "disable_log_stats": True}
    return replace(champion, name=FLOOR, engine_args=args | mine)


def max_step_ms(shadow: ShadowSpec) -> float:
    """What a slice may take. On the CPU it is a part of a step (preempt.py), on a GPU a whole one."""
    usual = MAX_STEP_GPU_MS if gpu_present() else MAX_STEP_CPU_MS
    return usual if shadow.max_step_ms is None else shadow.max_step_ms


def wants_speculation(shadow: ShadowSpec) -> bool:
    """Whether challengers speculate.

    ``auto`` means on the CPU: on a GPU it has not been measured, and it makes vLLM take its older model runner.
    """
    if not shadow.generate or shadow.speculative == "never":
        return False
    return shadow.speculative == "always" or not gpu_present()


def lora_rank(adapter: str) -> int:
    """The smallest max_lora_rank that vLLM accepts for a PEFT adapter.

    Raises:
        ConfigError: there is no adapter_config.json, or its rank is more than vLLM accepts.
    """
    path = Path(adapter) / "adapter_config.json"
    if not path.is_file():
        raise ConfigError(f"lora: {adapter!r} is not a PEFT adapter (no adapter_config.json in it)")
    rank = json.loads(path.read_text()).get("r")
    if not isinstance(rank, int):
        raise ConfigError(f"lora: {adapter!r} has no rank (no whole number 'r' in its adapter_config.json)")
    fitting = [known for known in LORA_RANKS if known >= rank]
    if not fitting:
        raise ConfigError(f"lora: {adapter!r} has rank {rank}; vLLM accepts at most {LORA_RANKS[-1]}")
    return fitting[0]


def environment(devices: Sequence[int]) -> dict[str, str]:
    """The environment of an engine process.

    One OpenMP thread less than cores: with as many threads as cores, steps of 15 ms become 100 ms as soon as
    the API process is busy, because OpenMP's threads spin at barriers. The user's own OMP_NUM_THREADS wins, which is
    the one that this process was started with: Ray sets one in its workers afterwards, to 1.
    """
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if gpu_present():
        # A captured graph takes the priority of the stream it is launched on. PyTorch has its kernels keep that of the
        # stream they were captured on, which vLLM makes without one: the champion's graphs would be nobody's first.
        settings["CUDA_GRAPHS_USE_NODE_PRIORITY"] = "0"
        if devices:  # indices among what this process may see: Ray gives a replica its own share
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            mine = visible.split(",") if visible else [str(index) for index in range(max(devices) + 1)]
            if max(devices) >= len(mine):
                raise ConfigError(f"devices: {list(devices)} must be indices into CUDA_VISIBLE_DEVICES={visible}")
            settings["CUDA_VISIBLE_DEVICES"] = ",".join(mine[device] for device in devices)
        return settings
    threads = started_with().get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))
    if not has_cxx_compiler():
        settings["TORCHDYNAMO_DISABLE"] = "1"
    return settings | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": threads,
        # The CPU backend saves an ahead-of-time artifact at each start and cannot load it at the next
        # ("'function' object has no attribute 'finalize_loading'"): compile without it.
        "VLLM_USE_AOT_COMPILE": os.environ.get("VLLM_USE_AOT_COMPILE", "0"),
    }


def started_with() -> Mapping[str, str]:
    """This process's environment as it was when it started."""
    return psutil.Process().environ()


async def start(config: Config, folder: Path | None = None) -> Engines:
    """Start the engines of ``config`` and wait until each is up or has failed.

    A challenger in quarantine is not started. One that takes the engine process of the shared placement with it, or
    does not load in time there, is quarantined, and everything is started again without it. Where one waits for
    another one to load, the other one is.

    Args:
        folder: the record's: the quarantine is in it, and by it the flight recorders are found; without one both end
            with the engines.

    Raises:
        ConfigError: the placement or the champion cannot be had.
        EngineStartError: the champion did not come up, or ended twice during the start.
    """
    quarantine = Quarantine.open(folder)
    blameless = 0
    while True:
        before, sockets = quarantine.names(), socket_folder()
        home = Path(sockets) if folder is None else flight.home(folder)
        engines = Engines(None, [], [], sockets, asyncio.Event(), quarantine, home)
        try:
            await start_all(config, engines)
        except EngineStartError:
            await engines.close()
            if quarantine.names() == before:
                raise
        except BaseException:
            await engines.close()
            raise
        else:
            if not engines.champion_dead.is_set():
                return engines
            await engines.close()
        blameless += quarantine.names() == before
        if blameless > 1:
            raise EngineStartError("the champion's engine process ended twice during the start")
        log.error("starting again without %s", ", ".join(set(quarantine.names()) - set(before)) or "knowing who it was")


async def start_all(config: Config, engines: Engines) -> None:
    """One attempt. What was started stands in ``engines`` whatever happens.

    Raises:
        ConfigError, EngineStartError: as ``start``.
    """
    models, absent = [config.champion], {}
    shared = config.placement == "shared"
    speculative = wants_speculation(config.shadow)
    args = [engine_args(config.champion, champion=True, shared=shared)]
    for challenger in config.challengers:
        quarantined = engines.quarantine.why(challenger.name)
        if quarantined is not None:
            absent[challenger.name] = AbsentEngine(challenger.name, str(quarantined), "quarantined")
            continue
        try:
            args.append(engine_args(challenger, champion=False, shared=shared, speculative=speculative))
            models.append(challenger)
        except ConfigError as fault:
            absent[challenger.name] = AbsentEngine(challenger.name, str(fault))
    groups = PLACEMENTS[config.placement](models)
    floor = len(models)
    quarantined = engines.quarantine.why(FLOOR)
    if quarantined is not None:
        absent[FLOOR] = AbsentEngine(FLOOR, str(quarantined), "quarantined")
    elif max(config.shadow.noise_floor, config.shadow.divergence) > 0:
        try:
            models.append(floor_model(config.champion))
            args.append(engine_args(models[floor], champion=False, shared=True))
            groups[0].append(floor)
        except ConfigError as fault:
            absent[FLOOR] = AbsentEngine(FLOOR, str(fault))
    environments = [environment(models[group[0]].devices) for group in groups]
    deaths = Deaths()
    specs = [CoreSpec.at(engines.folder, model.name, index, args[index]) for index, model in enumerate(models)]
    home = launch(config, engines, groups, environments, specs, deaths, has_champion=True)
    from understudy.engines import vllm_engine  # heavy; the engine processes are loading meanwhile

    engines.champion = await vllm_engine.connect_champion(
        specs[0], home[0], engines.champion_dead, deaths, engines.traffic
    )
    engines.tokenizer = engines.champion.renderer.tokenizer
    timeout_s = config.shadow.limits.start_timeout_s
    present = {
        models[index].name: await connect_challenger(
            models[index], specs[index], home[index], engines, deaths, timeout_s
        )
        for index in range(1, len(models))
    }
    for group in groups:
        meters = _meters([models[index].name for index in group], home[group[0]], engines, present)
        engines.meters.append((models[group[0]].devices, meters))
    everyone = present | absent
    engines.challengers = [everyone[challenger.name] for challenger in config.challengers]
    engines.floor = everyone.get(FLOOR)
    engines.watch(config.shadow.limits.hang_s, deaths)


def _meters(
    names: Sequence[str], process: EngineProcess, engines: Engines, present: Mapping[str, Engine]
) -> list[CoreMeter]:
    """What the meter asks of the engines that came up in one process."""
    from prometheus_client import REGISTRY

    from understudy.engines.core_meter import CoreMeter
    from understudy.engines.vllm_engine import VllmEngine

    found = []
    for name in names:
        engine = present.get(name)
        if engine is None:
            found.append(CoreMeter(name, "champion", engines.traffic, REGISTRY, process, engines.champion))
        elif isinstance(engine, VllmEngine):
            meter = CoreMeter(
                name, "challenger", engine.traffic, engine.metrics, process, engine.llm, engine.speculative
            )
            found.append(meter)
    return found


def launch(
    config: Config,
    engines: Engines,
    groups: Sequence[Sequence[int]],
    environments: Sequence[Mapping[str, str]],
    specs: Sequence[CoreSpec],
    deaths: Deaths,
    *,
    has_champion: bool,
) -> dict[int, EngineProcess]:
    """Start a process for each group of cores; the process of each core, by the core's index.

    Raises:
        OSError: no flight recorder can be made anywhere.
    """
    home: dict[int, EngineProcess] = {}
    for number, (group, settings) in enumerate(zip(groups, environments, strict=True)):
        mine = [specs[index] for index in group]
        names = [spec.name for spec in mine]
        process = EngineProcess.start(
            mine,
            has_champion=has_champion and group[0] == 0,
            environment=settings,
            on_dead=deaths.tell,
            flight=flight.create(
                engines.home, Path(engines.folder), f"flight-{os.getpid()}-{secrets.token_hex(4)}-{number}", names
            ),
            on_crash=engines.crashed,
            max_step_ms=max_step_ms(config.shadow),
            min_device_share=config.shadow.min_device_share,
        )
        engines.processes.append(process)
        home |= dict.fromkeys(group, process)
    return home


async def start_challengers(config: Config) -> Engines:
    """The challengers without their champion, of which only the tokenizer is loaded: for a replay.

    Nobody waits for them, so they take whole batches and not the small steps of the shared placement.

    Raises:
        ConfigError: the placement or a challenger cannot be had.
    """
    models, shared = list(config.challengers), config.placement == "shared"
    args = [engine_args(model, champion=False, shared=shared) for model in models]
    for model, mine in zip(models, args, strict=True):
        for name in CHALLENGER_STEP.keys() & mine.keys() - model.engine_args.keys():
            del mine[name]
    groups = PLACEMENTS[config.placement](models)
    environments = [environment(models[group[0]].devices) for group in groups]
    deaths, sockets = Deaths(), socket_folder()
    specs = [CoreSpec.at(sockets, model.name, index, args[index]) for index, model in enumerate(models)]
    engines = Engines(None, [], [], sockets, asyncio.Event(), Quarantine(None), Path(sockets))
    timeout_s = config.shadow.limits.start_timeout_s
    try:
        home = launch(config, engines, groups, environments, specs, deaths, has_champion=False)
        from understudy.engines import vllm_engine

        engines.tokenizer = vllm_engine.load_tokenizer(config.champion)
        present = {
            model.name: await connect_challenger(model, specs[index], home[index], engines, deaths, timeout_s)
            for index, model in enumerate(models)
        }
    except BaseException:
        await engines.close()
        raise
    engines.challengers = list(present.values())
    for group in groups:
        meters = _meters([models[index].name for index in group], home[group[0]], engines, present)
        engines.meters.append((models[group[0]].devices, meters))
    return engines


async def connect_challenger(
    model: ModelSpec,
    spec: CoreSpec,
    process: EngineProcess,
    engines: Engines,
    deaths: Deaths,
    timeout_s: float,
) -> Engine:
    """The challenger's Engine, or one that is not ready and says why: the champion serves all the same."""
    from understudy.engines import vllm_engine

    connecting = asyncio.create_task(
        vllm_engine.connect_challenger(model, spec, process, engines.tokenizer, deaths), name=f"connect-{model.name}"
    )
    try:
        late = await who_is_late(connecting, model.name, process, timeout_s)
        if late is None:
            return connecting.result()
    except Exception as fault:  # whatever it was, it is the challenger's own; status and the log show it
        log.exception("challenger %s did not come up", model.name)
        return AbsentEngine(model.name, f"{type(fault).__name__}: {fault}")
    finally:
        connecting.cancel()
        await asyncio.wait({connecting})
    process.kill()
    why = f"it was not up within {timeout_s:g} s"
    if process.has_champion:
        engines.quarantine.put_in(late, why)
    if late != model.name:
        why += f": its engine process was loading {late}"
    log.error("challenger %s did not come up: %s", model.name, why)
    await process.gone()
    return AbsentEngine(model.name, why)


async def who_is_late(
    connecting: asyncio.Task[Engine], awaited: str, process: EngineProcess, timeout_s: float
) -> str | None:
    """Wait for a challenger; the name of the core that took more than ``timeout_s``, None when it is connected.

    The driver, without which none gets warm, runs only when the last one is loaded: while another one loads it is that
    one's time that runs.
    """
    own_s = 0.0
    while True:
        began_s = time.monotonic()
        await asyncio.wait({connecting}, timeout=min(LOOK_S, timeout_s - own_s))
        if connecting.done():
            return None
        now = process.activity()
        at_work = awaited if now.core is None else process.specs[now.core].name
        if at_work == awaited or now.kind != ACTIVITIES[LOADING]:
            own_s += time.monotonic() - began_s
            if own_s >= timeout_s:
                return awaited
        elif now.for_s >= timeout_s:
            return at_work
