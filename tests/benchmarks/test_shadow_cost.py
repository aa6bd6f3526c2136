"""bench_shadow_cost in pieces: what is measured apart stands together, and only what belongs together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.serving import bench_shadow_cost as bench

REGIME = {"loop": "closed", "arms": bench.ARMS}


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
