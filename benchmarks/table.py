"""Rows as text: the figures first, with their targets, absolute amounts below."""

from __future__ import annotations

from collections.abc import Sequence

from .setting import Row


def print_rows(rows: Sequence[Row]) -> None:
    for row in rows:
        target = f"   (target {row.target})" if row.target else ""
        print(f"  {row.what:<62} {row.value:8.2f} {row.unit:<3}{target}")
    told: list[dict[str, float]] = []
    for row in rows:
        if row.absolute and row.absolute not in told:
            told.append(row.absolute)
            print("    " + "; ".join(f"{name}: {amount:.3g}" for name, amount in row.absolute.items()))
