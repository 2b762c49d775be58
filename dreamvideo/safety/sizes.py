"""Sizes that a network cannot take, and which it can."""

from __future__ import annotations


def check_divides(what: str, width: int, height: int, unit: int, cells: str = "pixels") -> None:
    """Raise ValueError, naming the nearest valid sizes, unless both sides are multiples of `unit`."""
    if min(width, height) >= unit and not (width % unit or height % unit):
        return
    smaller = [max(side // unit, 1) * unit for side in (width, height)]
    larger = [max(-(-side // unit), 1) * unit for side in (width, height)]
    nearest = dict.fromkeys(f"{w} x {h}" for w, h in (smaller, larger))  # one entry where both are the same
    raise ValueError(
        f"{what} of {width} x {height} {cells} does not divide by {unit}; nearest valid sizes: {' and '.join(nearest)}."
    )
