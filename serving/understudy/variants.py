"""Models on the command line: ``[NAME=]MODEL[+ADAPTER]``, for ``understudy compare`` and ``replay``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.config import read_yaml
from understudy.errors import ConfigError

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


def model_of(given: str, engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """One model as the configuration has it.

    A path that exists is taken whole, whatever is in it; else what is behind the last + is the adapter.

    Raises:
        ConfigError: a part is empty.
    """
    named = None if Path(given).exists() else _NAMED.fullmatch(given)
    name, rest = (named[1], named[2]) if named else ("", given)
    model, plus, adapter = (rest, "", "") if Path(rest).exists() else rest.rpartition("+")
    if not plus:
        model, adapter = rest, ""
    if not model.strip() or (plus and not adapter.strip()):
        raise ConfigError(f"{given!r} must be [NAME=]MODEL[+ADAPTER]")
    parts = {"model": model, "name": name, "lora": adapter, "engine_args": dict(engine_args)}
    return {key: value for key, value in parts.items() if value}


def with_models(
    config: str | None,
    *,
    champion: str | None,
    challengers: Sequence[str],
    engine_args: str | None,
    placement: str | None,
    recorded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The raw configuration: the file's, with the models and the placement of the command line over it.

    ``recorded`` is the champion where neither names one.

    Raises:
        ConfigError: a file or an option is wrong, or no model or challenger is given anywhere.
    """
    raw = dict(read_yaml(config)) if config else {}
    args = _object("--engine-args", engine_args)
    if champion is not None:
        raw["champion"] = {"name": "champion"} | model_of(champion, args)
    if challengers:
        raw.pop("challenger", None)
        raw["challengers"] = [model_of(each, args) for each in challengers]
    if placement is not None:
        raw["placement"] = placement
    if recorded is not None:
        raw.setdefault("champion", dict(recorded))
    if not raw.get("champion"):
        raise ConfigError("--champion: is required, here or as 'champion' in --config")
    if not raw.get("challengers") and not raw.get("challenger"):
        raise ConfigError("--challenger: at least one is required, here or as 'challengers' in --config")
    return raw


def with_gates(raw: Mapping[str, Any], label_pattern: str | None) -> dict[str, Any]:
    """Gates where the file has none: accuracy where labels can be read, and that answers are there."""
    gates: list[dict[str, Any]] = list(raw.get("gates") or [])
    compare = dict(raw.get("compare") or {})
    if label_pattern is not None:
        compare = {key: value for key, value in compare.items() if key != "label_json_path"}
        compare["label_pattern"] = label_pattern
    if not gates:
        accuracy = {"metric": "accuracy", "pattern": label_pattern, "margin": 0.05}
        gates = [
            *([accuracy] if label_pattern is not None else []),
            {"metric": "missing", "margin": 0.05},
            {"metric": "agreement", "margin": 0.1, "advisory": True},
        ]
    return dict(raw) | {"gates": gates} | ({"compare": compare} if compare else {})


def _object(option: str, given: str | None) -> Mapping[str, Any]:
    try:
        read = json.loads(given or "{}")
    except ValueError as fault:
        raise ConfigError(f"{option}: {given!r} must be a JSON object: {fault}") from fault
    if not isinstance(read, dict):
        raise ConfigError(f"{option}: {given!r} must be a JSON object")
    return read
