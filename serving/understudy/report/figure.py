"""One row of the report, and how numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

DASH = "-"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: a measure of both sides. ``note`` says how they differ, or what the number means."""

    name: str
    champion: str
    challenger: str
    note: str = ""
