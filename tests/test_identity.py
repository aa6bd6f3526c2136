"""What is compared has a name that changes with it, and with nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from understudy.config import Config, parse
from understudy.identity import BLOCK_BYTES, identify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model by its files, and an adapter."""
    for name in ("model", "other"):
        model = tmp_path / name
        model.mkdir()
        header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        content = len(header).to_bytes(8, "little") + header + name[:1].encode() * (40 * BLOCK_BYTES)
        (model / "model.safetensors").write_bytes(content)
        (model / "tokenizer.json").write_text('{"vocab": 1}')
        (model / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}12345678")
    return tmp_path


def config(folder: Path, **more: Any) -> Config:
    raw = {
        "champion": {"model": str(folder / "model"), "name": "champ", "engine_args": {"hf_token": "secret"}},
        "challengers": [{"model": str(folder / "other"), "name": "b", "lora": str(folder / "lora")}],
        "gates": [{"metric": "missing", "margin": 0.05}],
        "auth": {"shadow_key": "secret"},
    }
    return parse(raw | more)


def test_what_is_hashed(folder: Path) -> None:
    detail = identify(config(folder)).detail
    champion, (challenger,) = detail["champion"], detail["challengers"]
    assert champion["weights"].startswith("sampled-sha256:")
    assert champion["weights"] != challenger["weights"]
    assert champion["tokenizer"] == challenger["tokenizer"]
    assert champion["chat_template"] == challenger["chat_template"]
    assert (champion["adapter"], challenger["adapter"].count("sha256:")) == (None, 2)
    assert detail["gates"] == [detail["gates"][0]]
    assert detail["engine"]["torch"]
    assert "secret" not in json.dumps(detail)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a weight": lambda folder: flip(folder / "model" / "model.safetensors", -1),
    "a header": lambda folder: flip(folder / "model" / "model.safetensors", 12),
    "a name": lambda folder: (folder / "model" / "model.safetensors").rename(folder / "model" / "m.safetensors"),
    "the adapter": lambda folder: flip(folder / "lora" / "adapter_model.safetensors", -1),
    "its rank": lambda folder: (folder / "lora" / "adapter_config.json").write_text('{"r": 16}'),
    "the tokenizer": lambda folder: (folder / "other" / "tokenizer.json").write_text('{"vocab": 2}'),
    "the template": lambda folder: (folder / "model" / "chat_template.jinja").write_text("{{ other }}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_model_is_another_rollout(folder: Path, what: str) -> None:
    before = identify(config(folder)).rollout
    assert len(before) == 12
    CHANGES[what](folder)
    assert identify(config(folder)).rollout != before


def test_a_changed_margin_is_another_rollout_and_a_restart_elsewhere_is_none(folder: Path) -> None:
    before = identify(config(folder))
    assert identify(config(folder, gates=[{"metric": "missing", "margin": 0.06}])).rollout != before.rollout
    assert identify(config(folder, shadow={"generate": False})).rollout != before.rollout
    assert identify(config(folder, shadow={"sample": 0.5})).rollout == before.rollout
    os.utime(folder / "model" / "model.safetensors", (1, 1))
    moved = identify(config(folder, record={"url": str(folder / "record")}))
    assert moved.rollout == before.rollout
    assert moved.detail["config_sha256"] != before.detail["config_sha256"]
    assert identify(config(folder, auth={"shadow_key": "other"})).detail == before.detail


def test_a_model_that_is_not_here_has_no_digest_and_one_in_the_cache_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    absent = config(folder, champion={"model": "acme/tiny", "name": "champ"})
    assert identify(absent).detail["champion"]["weights"] is None
    cached = folder / "hub" / "models--acme--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc\n")
    (cached / "snapshots").mkdir()
    (folder / "model").rename(cached / "snapshots" / "abc")
    assert identify(absent).detail["champion"]["weights"] is not None
