"""The dashboard, the alerts, the list of metrics and the runbook: each names only what exists, and all of it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from understudy.meter.metrics import BY_NAME, METRICS

DEPLOY = Path(__file__).parents[1] / "deploy"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("understudy_dashboard", DEPLOY / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    """Every PromQL expression that is shipped."""
    panels = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))["panels"]
    drawn = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return drawn + [rule["expr"] for rule in alerts()]


def names_in(expression: str) -> set[str]:
    """The metrics an expression reads."""
    return set(re.findall(r"\b(?:understudy_|vllm:)\w+", expression))


def family_of(name: str) -> str:
    """A histogram is read by its parts."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def vllm_names() -> set[str]:
    return {name for expression in expressions() for name in names_in(expression) if name.startswith("vllm:")}


def test_the_dashboard_and_the_list_are_what_the_generator_writes() -> None:
    made = generator()
    assert (DEPLOY / "grafana.json").read_text(encoding="utf-8") == made.grafana(), "run deploy/dashboard.py"
    assert (DEPLOY / "metrics.md").read_text(encoding="utf-8") == made.metrics(), "run deploy/dashboard.py"


def test_every_metric_that_is_read_exists() -> None:
    """vLLM's are checked against a real server's /metrics in tests/meter/test_real.py."""
    for expression in expressions():
        names = names_in(expression)
        assert names or "up{" in expression, expression
        for name in names:
            if name.startswith("understudy_"):
                metric = BY_NAME.get(name) or BY_NAME.get(family_of(name))
                assert metric is not None, f"{name} in: {expression}"
                assert (name == metric.name) == (metric.kind != "histogram"), f"{name} is a {metric.kind}"


def test_labels_that_are_read_exist() -> None:
    for expression in expressions():
        for name, selector in re.findall(r"\b(understudy_\w+)\{([^}]*)\}", expression):
            metric = BY_NAME.get(name) or BY_NAME[family_of(name)]
            asked = set(re.findall(r"(\w+)\s*(?:=|!=|=~)", selector))
            assert asked <= set(metric.labels), expression


def test_counters_are_read_as_rates() -> None:
    for expression in expressions():
        for name in names_in(expression):
            if name in BY_NAME and BY_NAME[name].kind == "counter":
                assert re.search(rf"(rate|increase)\({name}", expression), expression


def test_every_metric_is_drawn_or_watched() -> None:
    read = {family_of(name) for expression in expressions() for name in names_in(expression)}
    assert {metric.name for metric in METRICS} <= read


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_has_a_row_in_the_runbook_and_every_row_an_alert() -> None:
    runbook = (DEPLOY / "README.md").read_text(encoding="utf-8")
    section = runbook[runbook.index("## Alerts") :]
    rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert sorted(rows) == sorted(rule["alert"] for rule in alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert rule["annotations"]["summary"]


@pytest.mark.parametrize(("check", "file"), [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_promtool_agrees(check: str, file: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, "check", check, DEPLOY / file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
