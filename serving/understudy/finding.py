"""One line of ``understudy doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a finding is meant."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``fix`` says what to do where something is wrong or could be better."""

    area: str
    state: State
    said: str
    fix: str = ""
