"""Which process holds which core, what each gets by default, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.builders import in_loop

from understudy import engines as package
from understudy.config import ModelSpec, ShadowSpec
from understudy.engines import placements
from understudy.engines.base import Health
from understudy.engines.flight import Activity
from understudy.engines.memory import checkpoint_bytes
from understudy.engines.placements import (
    LORA_RANKS,
    PLACEMENTS,
    Engines,
    connect_challenger,
    engine_args,
    environment,
    group_dedicated,
    group_shared,
    lora_rank,
    max_step_ms,
)
from understudy.engines.processes import CoreSpec, Deaths
from understudy.engines.quarantine import Quarantine
from understudy.errors import ConfigError, EngineStartError


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, present: bool = True) -> None:
    monkeypatch.setattr(placements, "gpu_present", lambda: present)


def models(*devices: tuple[int, ...]) -> list[ModelSpec]:
    return [ModelSpec("m", f"m-{index}", devices=each) for index, each in enumerate(devices)]


def adapter(folder: Path, rank: int) -> str:
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "peft_type": "LORA"}))
    return str(folder)


@pytest.mark.parametrize("present", [True, False])
def test_shared_is_one_process_with_the_champion_first(present: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, present)
    assert group_shared(models((), (), ())) == [[0, 1, 2]]
    assert group_shared(models(())) == [[0]]


@pytest.mark.parametrize("present", [True, False])
def test_dedicated_is_one_process_a_model(present: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, present)
    assert group_dedicated(models((0, 1), (2,), (3,))) == [[0], [1], [2]]


def test_dedicated_without_a_gpu_needs_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, False)
    assert group_dedicated(models((), ())) == [[0], [1]]


@pytest.mark.parametrize(
    ("devices", "rule"),
    [
        ([(0,), ()], "needs the devices of every model"),
        ([(), (1,)], "needs the devices of every model"),
        ([(0, 1), (1,)], r"\[0, 1, 1\] names a device twice"),
        ([(0, 0), (1,)], r"\[0, 0, 1\] names a device twice"),
    ],
)
def test_dedicated_on_a_gpu_refuses_devices_that_cannot_be_right(
    devices: list[tuple[int, ...]], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    with pytest.raises(ConfigError, match=f"devices: .*{rule}"):
        group_dedicated(models(*devices))


def test_the_table_has_every_placement_that_the_configuration_knows() -> None:
    assert set(PLACEMENTS) == {"shared", "dedicated"}


def test_a_challenger_gets_small_steps_and_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, False)
    champion = engine_args(ModelSpec("a", "a"), champion=True, shared=True)
    challenger = engine_args(ModelSpec("b", "b"), champion=False, shared=True)
    assert (champion["model"], challenger["model"]) == ("a", "b")
    assert "max_num_seqs" not in champion  # the champion is vLLM as it is
    assert "max_num_batched_tokens" not in champion
    assert challenger["max_num_seqs"] == 16
    assert challenger["max_num_batched_tokens"] == 512
    assert 0 < challenger["kv_cache_memory_bytes"] < champion["kv_cache_memory_bytes"]


def test_the_users_own_arguments_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_a_gpu(monkeypatch, False)
    own = {
        "kv_cache_memory_bytes": 5,
        "max_num_seqs": 1,
        "max_num_batched_tokens": 64,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "max_lora_rank": 64,
        "seed": 7,
    }
    spec = ModelSpec("b", "b", lora=adapter(tmp_path, 8), engine_args=own)
    assert engine_args(spec, champion=False, shared=True).items() >= own.items()
    assert own == {**own}
    assert spec.engine_args is own


def test_on_a_gpu_the_kv_cache_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    with pytest.raises(ConfigError, match=r"b\.engine_args\.kv_cache_memory_bytes: must be set on a GPU"):
        engine_args(ModelSpec("org/b", "b"), champion=True, shared=True)
    given = engine_args(ModelSpec("b", "b", engine_args={"kv_cache_memory_bytes": 9}), champion=True, shared=True)
    assert given["kv_cache_memory_bytes"] == 9
    assert "distributed_executor_backend" not in given


@pytest.mark.parametrize(("size", "executor"), [(None, "uni"), (1, "uni"), (2, None)])
def test_a_model_on_several_devices_has_a_process_for_each(
    size: int | None, executor: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the executor of one process the first rank would wait for the others for ever."""
    on_a_gpu(monkeypatch, False)
    spec = ModelSpec("b", "b", engine_args={} if size is None else {"tensor_parallel_size": size})
    assert engine_args(spec, champion=True, shared=False).get("distributed_executor_backend") == executor


def test_lora_is_switched_on_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_a_gpu(monkeypatch, False)
    assert not any("lora" in key for key in engine_args(ModelSpec("b", "b"), champion=False, shared=True))
    tuned = engine_args(ModelSpec("b", "b", lora=adapter(tmp_path, 20)), champion=False, shared=True)
    assert (tuned["enable_lora"], tuned["max_loras"], tuned["max_lora_rank"]) == (True, 1, 32)


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(1, 8), (8, 8), (9, 16), (16, 16), (64, 64), (65, 128), (257, 320), (321, 512), (512, 512)],
)
def test_the_smallest_rank_that_vllm_accepts(rank: int, expected: int, tmp_path: Path) -> None:
    assert lora_rank(adapter(tmp_path, rank)) == expected
    assert expected in LORA_RANKS


def test_a_rank_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has rank 513; vLLM accepts at most 512"):
        lora_rank(adapter(tmp_path, 513))


def test_what_is_no_adapter(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="is not a PEFT adapter"):
            lora_rank(str(path))


def test_an_engine_process_on_the_cpu_leaves_a_core_for_the_api_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_a_gpu(monkeypatch, False)
    given: dict[str, str] = {}
    monkeypatch.setattr(placements, "started_with", lambda: given)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray does in its workers: nobody asked for that
    for cores, threads in ((1, "1"), (2, "1"), (16, "15")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert environment(())["OMP_NUM_THREADS"] == threads
    given["OMP_NUM_THREADS"] = "3"
    assert environment(())["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in environment((0,))


def test_the_environment_at_the_start_does_not_show_what_was_set_afterwards() -> None:
    code = (
        "import os; os.environ['OMP_NUM_THREADS'] = '1'; from understudy.engines.placements import started_with; "
        "print(started_with().get('OMP_NUM_THREADS'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for more, seen in (({}, "None"), ({"OMP_NUM_THREADS": "3"}, "3")):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == seen


@pytest.mark.parametrize(
    ("visible", "devices", "expected"),
    [
        (None, (), None),
        (None, (0, 2), "0,2"),
        ("4,5,6", (0, 2), "4,6"),  # among those that Ray gave this replica
        ("GPU-a,GPU-b", (1,), "GPU-b"),
    ],
)
def test_devices_are_counted_among_those_this_process_may_see(
    visible: str | None, devices: tuple[int, ...], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings: dict[str, Any] = environment(devices)
    assert settings.get("CUDA_VISIBLE_DEVICES") == expected
    assert "OMP_NUM_THREADS" not in settings


def test_the_bytes_of_a_checkpoint_are_its_weight_files(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 5000)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "model.safetensors").write_bytes(b"x" * 5000)
    assert checkpoint_bytes(str(tmp_path)) == 110


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".gguf"])
def test_every_kind_of_weight_file_counts(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"weights{suffix}").write_bytes(b"x" * 7)
    assert checkpoint_bytes(str(tmp_path)) == 7


def test_a_model_that_is_not_on_this_disk_has_no_bytes_yet(tmp_path: Path) -> None:
    assert checkpoint_bytes("org/model") == 0
    assert checkpoint_bytes(str(tmp_path)) == 0


@in_loop
async def test_an_engine_process_that_ends_during_the_start_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody is to blame the first time; a server whose champion is dead is not handed on."""
    starts: list[Any] = []

    async def dying(_config: Any, engines: Any) -> None:
        starts.append(engines)
        if len(starts) <= num_deaths:
            engines.champion_dead.set()

    monkeypatch.setattr(placements, "start_all", dying)
    config: Any = None
    num_deaths = 1
    engines = await placements.start(config, tmp_path)
    assert engines is starts[1]
    assert not engines.champion_dead.is_set()
    num_deaths = 4
    with pytest.raises(EngineStartError, match="ended twice"):
        await placements.start(config, tmp_path)
    assert len(starts) == 4


class HungProcess:
    """The engine process of a champion, a and b, in which the core at work hangs."""

    has_champion = True

    def __init__(self, core: int | None, kind: str) -> None:
        self.specs = [CoreSpec(name, {}, "", "") for name in ("champ", "a", "b")]
        self.at_work = Activity(core, kind, 1.0, 1.0)
        self.killed = False

    def activity(self) -> Activity:
        assert not self.killed  # a recorder says who was at work, and ``kill`` ends it
        return self.at_work

    def kill(self) -> None:
        self.killed = True

    async def gone(self) -> None:
        assert self.killed


@pytest.mark.parametrize(
    ("core", "kind", "blamed", "why"),
    [
        (2, "loading", "b", "it was not up within 0.01 s: its engine process was loading b"),  # b never loads
        (1, "loading", "a", "it was not up within 0.01 s"),
        (1, "stepping", "a", "it was not up within 0.01 s"),  # everybody is loaded, and a does not get warm
        (None, "idle", "a", "it was not up within 0.01 s"),
    ],
)
@in_loop
async def test_the_challenger_that_is_loading_is_quarantined_and_not_the_one_that_waits_for_it(
    core: int | None, kind: str, blamed: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """a is loaded and waits for the driver, which runs when b is loaded too; a's time is over first."""

    async def never_up(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(package, "vllm_engine", SimpleNamespace(connect_challenger=never_up), raising=False)
    process: Any = HungProcess(core, kind)
    engines = Engines(None, [], [], str(tmp_path), asyncio.Event(), Quarantine(None), tmp_path)
    a = await connect_challenger(ModelSpec("a", "a"), process.specs[1], process, engines, Deaths(), 0.01)
    assert process.killed
    assert engines.quarantine.names() == [blamed]
    assert a.health() == Health(False, why)


@in_loop
async def test_while_another_challenger_loads_it_is_that_ones_time_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """a waits for b for three times as long as it has itself, and is up in time; b has only begun."""
    monkeypatch.setattr(placements, "LOOK_S", 0.01)
    process: Any = HungProcess(2, "loading")
    looks, enough = count(1), asyncio.Event()

    def activity() -> Activity:
        if next(looks) == 30:
            enough.set()
        return Activity(2, "loading", 0.01, 0.01)

    process.activity = activity

    async def up_after_30_looks(*_: Any) -> str:
        await enough.wait()
        return "a's engine"

    up = SimpleNamespace(connect_challenger=up_after_30_looks)
    monkeypatch.setattr(package, "vllm_engine", up, raising=False)
    engines = Engines(None, [], [], str(tmp_path), asyncio.Event(), Quarantine(None), tmp_path)
    a: Any = await connect_challenger(ModelSpec("a", "a"), process.specs[1], process, engines, Deaths(), 0.1)
    assert a == "a's engine"
    assert not process.killed
    assert engines.quarantine.names() == []


@pytest.mark.parametrize(("present", "usual"), [(False, 3.0), (True, 10.0)])
def test_what_the_champion_may_wait_is_a_layer_on_the_cpu_and_a_step_on_a_gpu(
    present: bool, usual: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, present)
    assert max_step_ms(ShadowSpec()) == usual
    assert max_step_ms(ShadowSpec(max_step_ms=7.0)) == 7.0
