"""The comparison's tables as Markdown and JSON, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation import summarise
from ..files import write_json, write_text
from ..media import write_png
from ..pictures import contact_sheet
from .comparison import Table
from .suite import Measured, Scale, frames_of

COLUMNS = {"subject": "subject fidelity", "motion": "motion fidelity", "context": "context fidelity"}

Results = Mapping[str, Mapping[str, Measured]]


def write(folder: Path, tables: Sequence[Table], results: Results, scale: Scale, seconds: float) -> list[Path]:
    """Write tables.md, tables.json and strips.png into `folder`; returns their paths."""
    summary = {
        number: {
            name: {"parameters": measured.parameters, **summarise(measured.scores)} for name, measured in rows.items()
        }
        for number, rows in results.items()
    }
    facts = {"seconds": round(seconds, 1), "tables": summary}
    paths = [folder / name for name in ("tables.md", "tables.json", "strips.png")]
    write_text(paths[0], markdown(tables, summary, scale, seconds))
    write_json(paths[1], facts)
    write_png(paths[2], figure(tables, results))
    return paths


def markdown(tables: Sequence[Table], summary: Mapping[str, Mapping[str, Any]], scale: Scale, seconds: float) -> str:
    """The tables, best value of a column in bold."""
    blocks = [_heading(scale, seconds)]
    for table in tables:
        rows = summary[table.number]
        lines = [f"## Table {table.number}: {table.title}", "", _line(["system", *COLUMNS.values(), "parameters"])]
        lines.append(_line(["---"] * (len(COLUMNS) + 2)))
        best = {column: max(row[column]["mean"] for row in rows.values()) for column in COLUMNS}
        for name, row in rows.items():
            cells = [_cell(row[column], row[column]["mean"] == best[column]) for column in COLUMNS]
            lines.append(_line([name, *cells, f"{row['parameters']:,}"]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _heading(scale: Scale, seconds: float) -> str:
    made = {"Subjects": len(scale.subjects), "motions": len(scale.motions), "seeds": scale.seeds}
    counts = ", ".join(f"{name}: {count}" for name, count in made.items())
    effort = f"training steps: {scale.share:.0%}, sampling steps: {scale.sampling_steps}; {seconds / 60:.0f} minutes"
    return (
        f"# The paper's comparison on the embedded base\n\n{counts}, {effort}.\n"
        "Mean and 95 % bootstrap interval over videos; every measure is a share, 1 is best."
    )


def _cell(value: Mapping[str, float], best: bool) -> str:
    mean = f"{value['mean']:.3f}"
    return f"{f'**{mean}**' if best else mean} ({value['low']:.3f} to {value['high']:.3f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def figure(tables: Sequence[Table], results: Results) -> Any:
    """A strip of frames for each system of each table, [3, H, W]: its first video."""
    rows = []
    for table in tables:
        for name, measured in results[table.number].items():
            rows.append((f"Table {table.number}: {name}", list(frames_of(measured.strips[0]))))
    return contact_sheet(rows, title="The first video of each system", tile=64)
