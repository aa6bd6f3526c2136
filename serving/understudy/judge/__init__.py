"""Gates and the verdict (step 9). Start at verdict.py; the mathematics is in evidence.py.

    evidence.py   what paired, bounded numbers prove, valid at every look
    gates.py      one gate: a metric, a margin, an alpha; and how it decides
    units.py      exchanges grouped into statistical units (sessions)
    verdict.py    Judge: endings and labels in, a Verdict out
    base.py       the contract of a metric; one file per metric, one line in the table below

Importing this package imports neither numpy nor any metric. Where to add a gate: judge/NAME.py and a line
here.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, cast

from understudy.errors import ConfigError

if TYPE_CHECKING:
    from understudy.judge.base import Metric

METRICS = {
    "accuracy": "understudy.judge.accuracy:Accuracy",
    "agreement": "understudy.judge.agreement:Agreement",
    "agreement_above_floor": "understudy.judge.above_floor:AboveFloor",
    "missing": "understudy.judge.missing:Missing",
}


def metric_class(name: str) -> type[Metric]:
    """The metric called ``name``.

    Raises:
        ConfigError: there is none; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in METRICS:
        nearest = difflib.get_close_matches(str(name), METRICS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"gates.metric: {name!r} is not one of {', '.join(sorted(METRICS))}{hint}")
    module, _, attribute = METRICS[name].partition(":")
    return cast("type[Metric]", getattr(import_module(module), attribute))
