"""The first thing a newcomer runs."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from tests.serving.process import MARK, marked_processes, wait_for


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(600)
def test_the_demo_ends_in_a_verdict_for_each_challenger(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    command = [str(Path(sys.executable).parent / "understudy"), "demo", "--tickets", "240", "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=580, check=False, env=os.environ | {MARK: mark}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.strip() for line in done.stdout.splitlines()]
    verdicts = {
        name: next(line for line in lines if f"challenger {name} " in line) for name in ("lora", "int8", "worse")
    }
    assert verdicts["lora"].startswith("GO")
    assert verdicts["int8"].startswith("GO")
    assert verdicts["worse"].startswith("NO-GO")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("NO-GO") >= 1
    wait_for(lambda: not marked_processes(mark), 30)
