"""A gate that cannot be right is refused, with the key, the value and the rule."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from understudy.errors import ConfigError
from understudy.judge import METRICS, metric_class
from understudy.judge.base import Reading, normal
from understudy.judge.gates import Gate
from understudy.types import Comparison, Ending, Exchange, Floor, State

from .conftest import PATTERN, compared, exchange


@pytest.mark.parametrize(
    ("fields", "key", "rule"),
    [
        ({"metric": "acuracy"}, "metric: 'acuracy'", "did you mean 'accuracy'"),
        ({"metric": ["accuracy"]}, "metric", "accuracy, agreement.*, missing"),
        ({"margin": 0}, "margin: 0", r"\(0, 1\)"),
        ({"margin": 1.0}, "margin: 1.0", r"\(0, 1\)"),
        ({"margin": "0.02"}, "margin: '0.02'", "number"),
        ({"margin": float("nan")}, "margin: nan", "number"),
        ({"alpha": 0.6}, "alpha: 0.6", r"\(0, 0.5\]"),
        ({"min_units": 0}, "min_units: 0", "1 or more"),
        ({"min_units": 10.5}, "min_units: 10.5", "whole"),
        ({"pattern": None}, "pattern: None", "group 1"),
        ({"pattern": "no group"}, "pattern: 'no group'", "group 1"),
        ({"pattern": "("}, r"pattern: '\('", "regular expression"),
        ({"metric": "missing"}, "pattern", "takes none"),
        ({"advisory": "yes"}, "advisory: 'yes'", "true or false"),
    ],
)
def test_a_wrong_gate_is_refused(fields: dict[str, Any], key: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"gates.{key}.*{rule}"):
        Gate(**{"metric": "accuracy", "margin": 0.02, "pattern": PATTERN, **fields})


def test_agreement_never_decides() -> None:
    assert not Gate("agreement", 0.1).decides
    assert Gate("missing", 0.1).decides
    assert not Gate("missing", 0.1, advisory=True).decides


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("state", [state for state in State if state not in (State.PENDING, State.CANCELLED)])
def test_every_metric_keeps_the_contract(name: str, state: State) -> None:
    metric = metric_class(name)("(?s)(.*)" if metric_class(name).NEEDS_PATTERN else None)
    text = "Category: refund " + "x" * 10_000
    one: Exchange = exchange("a", text)
    ending = compared(text) if state is State.COMPARED else Ending(state, reason="queue")
    ending = replace(ending, floor=Floor(comparison=Comparison({"exact_match": 1.0})))
    kept = metric.keep(one, ending)
    assert kept is not None
    assert hash(kept) == hash(metric.keep(one, ending))
    assert len(repr(kept)) < 1000  # the texts are gone
    assert (metric.read(kept, None) is None) == metric.NEEDS_LABEL
    reading = metric.read(kept, normal("refund"))
    assert isinstance(reading, Reading)
    assert 0 <= reading.low <= reading.high <= 1
    assert -1 <= reading.low - reading.champion <= reading.high - reading.champion <= metric.HIGHEST
    assert reading.missing == (state is not State.COMPARED)
    assert metric.MEANING
    assert "{points}" in metric.WORSE
    assert "{points}" in metric.BETTER


def test_importing_the_package_is_light() -> None:
    code = "import sys, understudy.judge; print(sorted({'numpy', 'torch', 'vllm', 'ray'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
