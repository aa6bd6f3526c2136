"""bench_shadow_cost: when it stops measuring; and in pieces, what is measured apart and belongs together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.serving import bench_shadow_cost as bench

from understudy.engines import speculate

REGIME = {"loop": "closed", "arms": bench.ARMS}
LENGTHS = (2, 3, 2, 4)


@dataclass
class Steps:
    """vLLM's engine and scheduler in one: a step takes a second and gives each request a token, all of it drafted."""

    lengths: dict[str, int] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)
    now_s: float = 0.0

    @property
    def running(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(num_output_tokens=count) for count in self.said.values()]

    def add_request(self, name: str, _prompt: object, asked: Any, **_more: object) -> None:
        self.lengths[name], self.said[name] = asked.max_tokens, 0

    def step(self) -> list[SimpleNamespace]:
        self.now_s += 1.0
        self.said = {name: count + 1 for name, count in self.said.items()}
        ended = [name for name, count in self.said.items() if count == self.lengths[name]]
        return [SimpleNamespace(request_id=name, finished=True, outputs=[said(self.said.pop(name))]) for name in ended]


def said(count: int) -> SimpleNamespace:
    drafted = SimpleNamespace(num_draft_tokens=count, histogram=[0, count])
    return SimpleNamespace(token_ids=list(range(count)), spec_decode_metrics=drafted)


def asked_for(count: int) -> SimpleNamespace:
    return SimpleNamespace(max_tokens=count, extra_args={speculate.EXTRA_ARG: [list(range(count))]})


def ran(monkeypatch: pytest.MonkeyPatch, tokens_each: int | None = None) -> bench.Run:
    """Four requests of LENGTHS tokens, two at a time, each with a token in the KV cache."""
    steps, engine = Steps(), object.__new__(bench.Engine)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: steps.now_s))
    engine._engine, engine._scheduler, engine._lora, engine._held = steps, steps, None, 2
    return engine.run([[0]] * len(LENGTHS), [asked_for(count) for count in LENGTHS], 2, tokens_each)


def test_what_is_timed_ends_when_the_last_request_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ran(monkeypatch)  # the first ends after 2 s, the second after 3; the last one is taken in then, and runs to 7
    assert (run.seconds, run.kv_token_seconds) == (3.0, 6.0)
    assert run.tokens == 2 + 3 + 1  # and one of the third, which is still at it
    assert run.measured == ("000000", "000001")
    assert [len(each) for each in run.token_ids()] == list(LENGTHS)
    assert ran(monkeypatch, tokens_each=10).tokens == 20


def test_what_became_of_drafts_is_told_of_what_was_measured_in_every_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {arm: [ran(monkeypatch), ran(monkeypatch)] for arm in bench.ARMS}
    answers = runs["plain"][0].token_ids()
    challenger: Any = SimpleNamespace(name="same", speculative=SimpleNamespace(scoring=None))
    drafted = [asked_for(count) for count in LENGTHS]
    row = bench.row(challenger, bench.Cell(1, 4, 2), runs, drafted, answers)
    assert row["drafted"] == {"proposed": 10, "accepted": 10, "lost": 0, "realigned": 0}
    assert (row["acceptance"], row["speculative_is_plain"]) == (1.0, 1.0)


def saved(path: Path, **more: Any) -> Path:
    kept = {"regime": REGIME, "machine": {"commit": bench.machine()["commit"]}, "cells": [{"challenger": "same"}]}
    path.write_text(json.dumps(kept | more))
    return path


def test_cells_are_picked_by_each_of_their_numbers() -> None:
    cell = bench.Cell(64, 256, 8)
    assert cell.is_one_of(None, None, None)
    assert cell.is_one_of([64, 512], [256], [8])
    assert not cell.is_one_of([512], [256], [8])
    assert not cell.is_one_of(None, [32], None)
    assert not cell.is_one_of(None, None, [1, 32])


def test_the_rows_of_a_file_of_the_same_run_stay(tmp_path: Path) -> None:
    assert bench.rows_beside(saved(tmp_path / "a.json"), REGIME) == [{"challenger": "same"}]
    dirty = {"commit": bench.machine()["commit"].rstrip("+") + "+"}  # by the file itself, where git knows it
    assert bench.rows_beside(saved(tmp_path / "b.json", machine=dirty), REGIME)


def test_rows_of_something_else_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no file that has rows"):
        bench.rows_beside(tmp_path / "none.json", REGIME)
    with pytest.raises(SystemExit, match="regime"):
        bench.rows_beside(saved(tmp_path / "a.json", regime={"loop": "open"}), REGIME)
    with pytest.raises(SystemExit, match="commit abc"):
        bench.rows_beside(saved(tmp_path / "b.json", machine={"commit": "abc"}), REGIME)


def test_rows_stand_in_the_order_of_the_grid() -> None:
    rows = [
        {"challenger": name, "prompt_tokens": prompt, "output_tokens": 32, "concurrency": concurrency}
        for name, prompt, concurrency in (("lora", 64, 8), ("same", 512, 1), ("worse", 64, 1), ("same", 64, 8))
    ]
    assert [row["challenger"] for row in sorted(rows, key=bench.place_of)] == ["worse", "same", "same", "lora"]
