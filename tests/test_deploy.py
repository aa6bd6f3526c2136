"""What is shipped to be copied must be right: the commented configurations and the Serve file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from understudy.config import Config, load, parse

DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.mark.parametrize("placement", ["shared", "dedicated"])
def test_every_placement_has_a_configuration_that_parses(placement: str) -> None:
    assert load(DEPLOY / f"{placement}.yaml").placement == placement


def test_the_serve_file_builds_from_our_import_path() -> None:
    serve = yaml.safe_load((DEPLOY / "serve.yaml").read_text(encoding="utf-8"))
    application = serve["applications"][0]
    assert application["import_path"] == "understudy.app:build"
    assert isinstance(parse(application["args"]), Config)


def test_what_is_commented_out_in_shared_yaml_are_the_defaults() -> None:
    """Uncommenting the shadow section changes nothing."""
    lines = (DEPLOY / "shared.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("# shadow:")
    section = [line.removeprefix("# ") for line in lines[start:] if re.match(r"# {1,6}\w+:", line)]
    section = section[: next(i for i, line in enumerate(section[1:], 1) if not line.startswith(" "))]
    raw: dict[str, Any] = yaml.safe_load("\n".join(section))
    plain = {"champion": {"model": "m"}}
    assert parse(plain | raw) == parse(plain)
    assert set(raw["shadow"]["limits"]) == set(parse(plain).shadow.limits.__dataclass_fields__)
