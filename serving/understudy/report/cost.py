"""What each model costs, as rows of the report: from ``meter`` of the status."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from understudy.report.figure import DASH, Figure

ROWS: tuple[tuple[str, str, Callable[[float], str], str], ...] = (
    (
        "device time an answer",
        "device_s_per_answer",
        lambda value: f"{1000 * value:,.1f} ms",
        "idle is apart",
    ),
    ("energy an answer", "joules_per_answer", lambda value: f"{value:,.2f} J", "by device time"),
    ("price of 1000 answers", "usd_per_answer", lambda value: f"${1000 * value:,.4f}", ""),
    ("USD per M input tokens", "usd_per_million_input_tokens", lambda value: f"${value:,.4f}", "by prefill time"),
    ("USD per M output tokens", "usd_per_million_output_tokens", lambda value: f"${value:,.4f}", "by decode time"),
    (
        "USD a day",
        "usd_per_day",
        lambda value: f"${value:,.2f}",
        "at the traffic since the start",
    ),
)
"""(name, field of meter.cost.Cost, how it is written, note). A row that neither side has is left out."""


def cost_figures(meter: Mapping[str, Any], name: str) -> tuple[Figure, ...]:
    """The rows of one challenger; none where there is no meter."""
    models = meter.get("models") or {}
    champion = next((one["cost"] for one in models.values() if one["role"] == "champion"), None)
    if champion is None or name not in models:
        return ()
    mine, promoted = models[name]["cost"], models[name].get("promoted")
    figures: list[Figure] = []
    for row, field, show, note in ROWS:
        theirs, own = champion[field], mine[field]
        if theirs is not None or own is not None:
            champions = DASH if theirs is None else show(theirs)
            figures.append(Figure(row, champions, DASH if own is None else show(own), note))
    if promoted is not None:
        figures.append(_promoted(promoted))
    return tuple(figures)


def _promoted(promoted: Mapping[str, Any]) -> Figure:
    said, fraction = [], promoted["saved_device_fraction"]
    if fraction is not None:
        said.append(f"{abs(fraction) * 100:.0f}% {'less' if fraction >= 0 else 'more'} device time")
    if promoted["saved_usd_per_day"] is not None:
        saved = promoted["saved_usd_per_day"]
        said.append(f"{'saves' if saved >= 0 else 'costs'} ${abs(saved):,.2f} a day")
    price = promoted["usd_per_day"]
    shown = f"${price:,.2f} a day" if price is not None else f"{promoted['device_s_per_day']:,.0f} s a day"
    return Figure("if promoted", "", shown, ", ".join(said))


def assumption(meter: Mapping[str, Any], name: str) -> str:
    """What the row "if promoted" takes for granted, as a sentence; empty where there is none."""
    promoted = (meter.get("models") or {}).get(name, {}).get("promoted")
    return "" if promoted is None else f"If promoted: {promoted['assumption']}."
