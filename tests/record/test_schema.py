"""SCHEMA.md says what is written, no more and no less."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.record.builders import accepted, ended, feedback, plain

import understudy.record
from understudy.record import Control, Event
from understudy.record.codec import to_json
from understudy.record.columns import COLUMNS
from understudy.record.schema import VERSION
from understudy.record.sql import VIEWS
from understudy.types import Observation

PAGE = Path(understudy.record.__file__).with_name("SCHEMA.md").read_text(encoding="utf-8")
EVERYWHERE = {"v", "kind", "rollout"}
OF_AN_OBSERVATION = ("champion", "observation")
OPEN = {"parameters", "tags", "offered", "comparison", "detail"}  # whose names are not ours
EVENTS: dict[str, Event] = {
    "accepted": accepted(1),
    "ended": ended(1),
    "feedback": feedback("x"),
    "control": Control("pause", 1.0),
}


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, f"SCHEMA.md has no section {name!r}"
    return found[1]


def listed(name: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", section(name), flags=re.MULTILINE))


def paths(document: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in document.items():
        yield prefix + name
        if isinstance(value, dict) and name not in OPEN:
            yield from paths(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            yield from paths(value[0], f"{prefix}{name}[].")


@pytest.mark.parametrize("kind", EVENTS)
def test_the_fields_of_a_record(kind: str) -> None:
    document = to_json(EVENTS[kind], plain)
    outside = {path for path in paths(document) if not path.startswith(tuple(f"{one}." for one in OF_AN_OBSERVATION))}
    assert outside - EVERYWHERE == listed(kind)


def test_the_fields_of_an_observation() -> None:
    ending = to_json(EVENTS["ended"], plain)["observation"]
    assert set(paths(ending)) == listed("observation")
    left_out = {"num_prompt_tokens_left_out"}  # num_prompt_tokens, which only a record without the ids has
    assert {each.name for each in fields(Observation)} - left_out <= listed("observation")


def test_the_version_and_what_every_record_has() -> None:
    assert f"version {VERSION}\n" in PAGE.splitlines(keepends=True)[0]
    assert listed("Every record") == EVERYWHERE


def test_the_columns() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", section("Columns of a sealed segment"), flags=re.MULTILINE)
    assert {name: (kind, what) for name, kind, what in rows} == COLUMNS


def test_the_views() -> None:
    assert listed("Views of `understudy sql`") == {"records", *VIEWS}
