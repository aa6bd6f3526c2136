"""One plain SVG line chart, written by hand: nothing to install, and a reader sees it in the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 320, 60, 40, 36, 130
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad")


def lines_svg(path: Path, title: str, x_label: str, x: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    """Every line over the same ``x``, from zero, so that what looks flat is flat."""
    top = 1.1 * max(value for values in lines.values() for value in values)
    span = max(x) or 1.0

    def at(x_value: float, y_value: float) -> str:
        across = LEFT + x_value / span * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - y_value / top * (HEIGHT - BOTTOM - TOP):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<g font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) // 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
    ]
    for quarter in range(5):
        _, y = at(0.0, top * quarter / 4).split(",")
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{top * quarter / 4:.0f}</text>')
        across, _ = at(span * quarter / 4, 0.0).split(",")
        parts.append(f'<text x="{across}" y="{HEIGHT - 24}" text-anchor="middle">{span * quarter / 4:.0f}</text>')
    for (name, values), colour in zip(lines.items(), COLOURS, strict=False):
        points = " ".join(at(a, b) for a, b in zip(x, values, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        _, y = at(0.0, values[-1]).split(",")
        parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{y}" fill="{colour}">{escape(name)}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</g></svg>"]) + "\n", encoding="utf-8")
