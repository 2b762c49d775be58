"""Losses as a small drawing that stands in a page's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, EDGE, LINE = 240, 80, 6, 12
POINTS = 120  # of a curve: each is the mean of its stretch of steps
COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa3377")


def read_losses(table: Path) -> dict[str, list[float]]:
    """Stage -> losses of a table as `training.losses` writes it; empty where it cannot be read."""
    found: dict[str, list[float]] = {}
    try:
        for line in table.read_text(encoding="utf-8").splitlines()[1:]:
            stage, _, loss = line.split(",")
            found.setdefault(stage, []).append(float(loss))
    except (OSError, ValueError):
        return {}
    return found


def svg(curves: Mapping[str, Sequence[float]]) -> str:
    """The curves in one frame, each over its own steps, from 0 to the largest mean."""
    thinned = {name: _means(values) for name, values in curves.items()}
    most = max(max(values) for values in thinned.values()) or 1.0
    ground = HEIGHT + LINE * len(curves) - EDGE  # below the lines that name them
    lines, names = [], []
    for index, (name, values) in enumerate(thinned.items()):
        colour = COLOURS[index % len(COLOURS)]
        width = (WIDTH - 2 * EDGE) / max(1, len(values) - 1)
        points = " ".join(
            f"{EDGE + width * place:.1f},{ground - (HEIGHT - 2 * EDGE) * value / most:.1f}"
            for place, value in enumerate(values)
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        steps = f"{escape(name)}, {len(curves[name])} steps, {values[-1]:.4f}"
        names.append(f'<text x="{EDGE + 2}" y="{LINE * (index + 1)}" font-size="10" fill="{colour}">{steps}</text>')
    inside = "".join(lines + names)
    size = f'viewBox="0 0 {WIDTH} {ground + EDGE}" width="{WIDTH}" height="{ground + EDGE}"'
    return f'<svg {size} role="img">{inside}</svg>'


def _means(values: Sequence[float]) -> list[float]:
    """At most `POINTS` means of stretches as even as can be."""
    count = min(POINTS, len(values))
    ends = [round(len(values) * place / count) for place in range(count + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in zip(ends, ends[1:], strict=False)]
