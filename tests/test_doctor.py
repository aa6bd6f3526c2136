"""`understudy doctor`: what is wrong is found, said with a fix, and the exit code tells it."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as loaded

from understudy import doctor, trial
from understudy.cli import cli
from understudy.doctor import examine
from understudy.engines import placements
from understudy.errors import MeterError
from understudy.finding import Finding, State
from understudy.record.signing import make_key

MIB = 2**20


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "gpu_present", lambda: False)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """Writes a configuration with one model that is there; keys on top as given."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_text("{}")
    (model / "model.safetensors").write_bytes(b"x" * 1000)

    def write(**keys: Any) -> str:
        raw: dict[str, Any] = {
            "champion": {"model": str(model), "name": "champ", "engine_args": {"kv_cache_memory_bytes": MIB}},
            "record": {"url": str(tmp_path / "record")},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(raw | keys))
        return str(path)

    return write


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wrong(path: str | None, port: int | None = None) -> list[Finding]:
    return [one for one in examine(path, port or free_port()) if one.state is State.WRONG]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["doctor", *arguments])


def test_a_machine_and_a_configuration_that_are_right(config: Callable[..., str]) -> None:
    done = run(config(), "--port", str(free_port()))
    assert done.exit_code == 0, done.output
    assert "nothing is wrong" in done.output
    assert "OMP_NUM_THREADS=" in done.output
    assert "champ:" in done.output


def test_without_a_configuration_it_looks_at_the_machine() -> None:
    assert wrong(None) == []
    areas = {one.area for one in examine(None, free_port())}
    assert {"python", "vllm", "torch", "ray", "gpu", "cpu", "memory", "compiler", "port"} <= areas


def test_a_wrong_configuration_is_named_and_exits_with_one(config: Callable[..., str]) -> None:
    done = run(config(champoin={"model": "x"}))
    assert done.exit_code == 1
    assert "champoin: unknown key" in done.output


def test_a_port_that_somebody_has(config: Callable[..., str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        (found,) = wrong(config(), holder.getsockname()[1])
    assert found.area == "port"
    assert found.fix


@pytest.mark.parametrize(
    ("model", "words"),
    [("/nowhere/at/all", "is not there"), ("{empty}", "has no config.json or tokenizer_config.json")],
)
def test_a_model_that_is_not_there_or_is_none(
    config: Callable[..., str], tmp_path: Path, model: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    path = config(challengers=[{"model": model.format(empty=tmp_path / "empty"), "name": "rival"}])
    assert [words in one.said for one in wrong(path)] == [True]


def test_a_model_of_the_hub_is_cached_or_downloaded_or_impossible(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = config(challengers=[{"model": "org/name", "name": "rival"}])
    assert wrong(path) == []
    assert any("will be downloaded" in one.said and one.fix for one in examine(path, free_port()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (found,) = wrong(path)
    assert "org/name is not in" in found.said
    (tmp_path / "hub" / "models--org--name").mkdir(parents=True)
    assert wrong(path) == []


def test_an_adapter_that_is_none_is_said_once(config: Callable[..., str], tmp_path: Path) -> None:
    good = tmp_path / "adapter"
    good.mkdir()
    (good / "adapter_config.json").write_text(json.dumps({"r": 8}))
    model = str(tmp_path / "model")
    kept = {"engine_args": {"kv_cache_memory_bytes": MIB}}
    assert wrong(config(challengers=[{"model": model, "name": "a", "lora": str(good), **kept}])) == []
    (found,) = wrong(config(challengers=[{"model": model, "name": "a", "lora": str(tmp_path / "no"), **kept}]))
    assert "is not a PEFT adapter" in found.said


def test_more_memory_than_there_is(config: Callable[..., str], tmp_path: Path) -> None:
    huge = {"model": str(tmp_path / "model"), "engine_args": {"kv_cache_memory_bytes": 2**44}}
    (found,) = wrong(config(champion=huge))
    assert found.area == "placement"
    assert "lower engine_args.kv_cache_memory_bytes" in found.fix


def test_a_folder_that_cannot_be_written(config: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    (found,) = wrong(config())
    assert (found.area, "Permission denied" in found.said) == ("record", True)


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(64 * MIB, 63 * MIB, MIB))
    (found,) = wrong(None)
    assert found.area == "/dev/shm"
    assert "--shm-size" in found.fix


def test_a_gpu_whose_driver_does_not_answer(monkeypatch: pytest.MonkeyPatch, config: Callable[..., str]) -> None:
    def broken() -> Any:
        raise MeterError("NVML cannot be used: Driver Not Loaded")

    monkeypatch.setattr(placements, "gpu_present", lambda: True)
    monkeypatch.setattr(doctor, "NvmlSource", broken)
    areas = {one.area: one.said for one in wrong(config())}
    assert "Driver Not Loaded" in areas["gpu"]
    if doctor._version("vllm") is None:
        assert "is for CPUs, and there is a GPU" in areas["vllm"]


def test_no_verdict_can_come_without_a_gate(config: Callable[..., str], tmp_path: Path) -> None:
    rival = {"model": str(tmp_path / "model"), "name": "b", "engine_args": {"kv_cache_memory_bytes": MIB}}
    found = examine(config(challengers=[rival]), free_port())
    assert any(one.area == "gates" and one.state is State.NOTE for one in found)
    gate = {"metric": "accuracy", "margin": 0.02, "pattern": "(x)"}
    found = examine(config(challengers=[rival], gates=[gate]), free_port())
    assert not any(one.area == "gates" for one in found)


# What a start would stumble over, tried


def areas(path: str) -> dict[str, Finding]:
    return {one.area: one for one in examine(path, free_port())}


def test_an_object_store_is_written_to_and_left_as_it_was(config: Callable[..., str], tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    path = config(record={"url": "memory://bucket/record", "spool": str(tmp_path / "spool")})
    assert areas(path)["store"].state is State.OK
    assert filesystem.find("/bucket") == []


@pytest.mark.parametrize("broken", ["pipe_file", "cat_file", "rm_file"])
def test_a_store_that_does_not_write_read_or_delete(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("AccessDenied")  # what a store's package raises is not always an OSError

    monkeypatch.setattr(MemoryFileSystem, broken, refuse)
    (found,) = wrong(config(record={"url": "memory://other/record", "spool": str(tmp_path / "spool")}))
    assert (found.area, "RuntimeError: AccessDenied" in found.said) == ("store", True)
    MemoryFileSystem.store.clear()


def test_a_store_that_does_not_answer(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(trial, "STORE_WAIT_S", 0.0)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda *_, **__: gate.wait())
    (found,) = wrong(config(record={"url": "memory://third/record", "spool": str(tmp_path / "spool")}))
    gate.set()
    assert "no answer within" in found.said


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("nonsense", None)])
def test_a_store_whose_package_is_missing_is_told_which(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, package: str | None
) -> None:
    if package is not None:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(loaded, scheme, raising=False)  # fsspec keeps what it has loaded
    (found,) = wrong(config(record={"url": f"{scheme}://bucket/record", "spool": str(tmp_path / "spool")}))
    assert found.area == "store"
    assert (f"pip install {package}" if package else "fsspec knows no such store") in found.fix


def test_a_signing_key(config: Callable[..., str], tmp_path: Path) -> None:
    path, record = tmp_path / "key.pem", {"url": str(tmp_path / "record"), "signing_key": str(tmp_path / "key.pem")}
    (found,) = wrong(config(record=record))
    assert (found.area, "understudy audit keygen" in found.fix) == ("signing key", True)
    public = make_key(path)
    assert public in areas(config(record=record))["signing key"].said


def test_redactors_are_imported_where_they_are_used(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_redactor.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    names = ["patterns", "no_such_module:redact", "broken_redactor:redact", "presidio"]
    record = {"url": str(tmp_path / "record"), "redactors": names}
    found = wrong(config(record={**record, "text": "redacted"}))
    assert [one.area for one in found] == ["redactor"] * 3
    assert "no_such_module" in found[0].said
    assert "ZeroDivisionError" in found[1].said
    assert "presidio-analyzer" in found[2].said
    assert wrong(config(record={**record, "text": "full"})) == []


def test_presidio_is_looked_for_and_not_started_because_it_may_download_a_model(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presidio_analyzer.py").write_text("raise OSError('it was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    record = {"url": str(tmp_path / "record"), "text": "redacted", "redactors": ["presidio"]}
    assert "presidio is installed" in areas(config(record=record))["redactor"].said


def test_comparators_are_imported(config: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    callables = {"tone": "json:dumps", "gone": "json:no_such_function"}
    path = config(compare={"use": ["exact", "chrf"], "callables": callables})
    assert [one.area for one in wrong(path)] == ["comparator", "comparator"]
    assert "sacrebleu" in wrong(path)[0].said
    assert "compare.callables.gone" in wrong(path)[1].said
    assert any("custom_tone: json:dumps" in one.said for one in examine(path, free_port()))


def test_the_extra_for_traces(config: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = config(traces={"endpoint": "http://localhost:4318/v1/traces"})
    assert areas(path)["traces"].state is State.OK
    for name in [each for each in sys.modules if each.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # as if nothing of it were installed
    (found,) = wrong(path)
    assert (found.area, "needs OpenTelemetry" in found.said) == ("traces", True)
