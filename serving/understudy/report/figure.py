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


def percent(fraction: float | None) -> str:
    """A fraction: 84.0%. Never 100.0% or 0.0% for what is only nearly so."""
    if fraction is None:
        return DASH
    text = f"{fraction * 100:.1f}"
    if (text == "100.0" and fraction < 1) or (text == "0.0" and fraction > 0):
        text = f"{fraction * 100:.4g}"
    return f"{text}%"
