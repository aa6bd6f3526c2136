"""The cache around the demo models with a fake recipe, at once; the models themselves, slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from understudy.demo.models import NAMES, DemoModels, build

ACCURACY = {"champion": 0.9, "lora": 0.95, "int8": 0.9, "worse": 0.6}


@pytest.fixture
def num_builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the recipe by one that writes two small files per model; the list grows with every build."""
    builds: list[int] = []

    def make_models(folder: Path, progress: Callable[[str], None]) -> dict[str, float]:
        builds.append(len(builds))
        progress("making")
        for name in NAMES:
            (folder / name).mkdir()
            (folder / name / "config.json").write_text("{}")
            (folder / name / "model.safetensors").write_text(name)
        return ACCURACY

    recipe = ModuleType("understudy.demo.recipe")
    recipe.make_models = make_models  # type: ignore[attr-defined]
    recipe.NUM_HELD_OUT_TICKETS = 400  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "understudy.demo.recipe", recipe)
    monkeypatch.setattr(sys.modules["understudy.demo"], "recipe", recipe, raising=False)
    return builds


def test_a_complete_folder_is_reused(tmp_path: Path, num_builds: list[int]) -> None:
    lines: list[str] = []
    first = build(tmp_path / "demo", progress=lines.append)
    second = build(tmp_path / "demo", progress=lines.append)
    assert first == second
    assert len(num_builds) == 1
    assert lines == ["making", f"reusing {tmp_path / 'demo'}"]
    assert dict(first.accuracy) == ACCURACY


def _lose_a_file(folder: Path) -> None:
    (folder / "worse" / "model.safetensors").unlink()


def _cut_a_file(folder: Path) -> None:
    (folder / "champion" / "model.safetensors").write_text("")


def _lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _cut_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:40])


def _come_from_other_sources(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "other"}))


@pytest.mark.parametrize(
    "spoil", [_lose_a_file, _cut_a_file, _lose_the_manifest, _cut_the_manifest, _come_from_other_sources]
)
def test_an_incomplete_or_outdated_folder_is_rebuilt(
    tmp_path: Path, num_builds: list[int], spoil: Callable[[Path], None]
) -> None:
    folder = tmp_path / "demo"
    build(folder)
    spoil(folder)
    rebuilt = build(folder)
    assert len(num_builds) == 2
    assert (rebuilt.champion / "model.safetensors").read_text() == "champion"
    assert {path.name for path in tmp_path.iterdir()} == {"demo", ".demo.lock"}  # nothing is left behind


def test_an_interrupted_build_leaves_no_folder(
    tmp_path: Path, num_builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, _progress: object) -> dict[str, float]:
        (folder / "champion").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["understudy.demo.recipe"], "make_models", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    build(tmp_path / "demo")
    assert len(num_builds) == 1


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, num_builds: list[int]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert not num_builds


def test_the_cache_needs_no_torch() -> None:
    code = "import sys, understudy.demo.models; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.fixture(scope="session")
def demo() -> DemoModels:
    default = Path("~/.cache/understudy/demo")
    return build(Path(os.environ.get("UNDERSTUDY_DEMO_DIR", default)))


@pytest.mark.slow
def test_the_accuracies_are_in_order(demo: DemoModels) -> None:
    accuracy = demo.accuracy
    assert accuracy["champion"] > 0.8
    assert accuracy["worse"] < accuracy["champion"] - 0.1
    assert abs(accuracy["int8"] - accuracy["champion"]) <= 0.05
    assert accuracy["lora"] >= accuracy["champion"] - 0.02


@pytest.mark.slow
def test_the_tokenizer_renders_answers_of_30_tokens_or_more(demo: DemoModels) -> None:
    from transformers import AutoTokenizer

    from understudy.demo.tickets import chat_messages, held_out_tickets

    tokenizer = AutoTokenizer.from_pretrained(demo.champion)
    tickets = held_out_tickets(300)
    assert min(len(tokenizer(ticket.reply)["input_ids"]) for ticket in tickets) >= 30
    rendered = tokenizer.apply_chat_template(chat_messages(tickets[0]), tokenize=False, add_generation_prompt=True)
    assert rendered == f"<|user|>{tickets[0].text}<|end|><|assistant|>"
    tools = [{"type": "function", "function": {"name": "refund"}}]
    with_tools = tokenizer.apply_chat_template(chat_messages(tickets[0]), tokenize=False, tools=tools)
    assert with_tools.startswith("<|tools|>[{")
    assert '"refund"' in with_tools


@pytest.mark.slow
def test_int8_holds_int8_weights_and_bf16_embeddings(demo: DemoModels) -> None:
    import torch
    from safetensors import safe_open

    with safe_open(demo.int8 / "model.safetensors", framework="pt") as tensors:
        dtypes = {name: tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118
    quantised = {name.removesuffix("_scale") for name in dtypes if name.endswith("_scale")}
    assert len(quantised) == 7 * 3  # projections a layer, layers
    assert {dtypes[name] for name in quantised} == {torch.int8}
    assert dtypes["model.embed_tokens.weight"] == torch.bfloat16
