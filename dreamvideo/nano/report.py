"""The comparison's tables as Markdown and JSON, and its figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..evaluation.metrics import summarise
from ..evaluation.pictures import contact_sheet
from ..media.writing import write_png
from ..safety.limits import parsed
from ..safety.paths import read_small, write_json, write_text
from . import world
from .cases import Case, Scale, cases
from .comparison import Table
from .pieces import frames_of
from .suite import Measured

FILES = ("tables.md", "tables.json", "strips.png")
COLUMNS = {"subject": "subject fidelity", "motion": "motion fidelity", "context": "context fidelity"}

Results = Mapping[str, Mapping[str, Measured]]


def write(folder: Path, tables: Sequence[Table], results: Results, scale: Scale, seconds: float) -> list[Path]:
    """Write tables.md, tables.json and strips.png into `folder`; returns their paths."""
    summary = {number: _summary(rows) for number, rows in results.items()}
    facts = {"seconds": round(seconds, 1), "tables": summary}
    paths = [folder / name for name in FILES]
    write_text(paths[0], markdown(tables, summary, scale, seconds))
    write_json(paths[1], facts)
    write_png(paths[2], figure(tables, results, scale))
    return paths


def written_tables(folder: Path) -> set[str]:
    """The numbers of the tables that `folder` has from an earlier run."""
    try:
        facts = parsed(read_small(folder / "tables.json").decode())
    except ValueError:
        return set()
    tables = facts.get("tables") if isinstance(facts, dict) else None
    return set(tables) if isinstance(tables, dict) else set()


def _summary(rows: Mapping[str, Measured]) -> dict[str, Any]:
    """Of each system its numbers, its scores, and by how much its table's last system is above it, video by video."""
    *_, reference = rows.values()
    return {
        name: {
            "parameters": measured.parameters,
            **summarise(measured.scores),
            "behind": summarise([_less(*pair) for pair in zip(reference.scores, measured.scores, strict=True)]),
        }
        for name, measured in rows.items()
    }


def _less(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    return {metric: ours[metric] - theirs[metric] for metric in ours}


def markdown(tables: Sequence[Table], summary: Mapping[str, Mapping[str, Any]], scale: Scale, seconds: float) -> str:
    """The tables, best value of a column in bold."""
    blocks = [_heading(scale, seconds)]
    for table in tables:
        rows = summary[table.number]
        lines = [f"## Table {table.number}: {table.title}", "", _line(["system", *COLUMNS.values(), "parameters"])]
        lines.append(_line(["---"] * (len(COLUMNS) + 2)))
        best = {column: max(row[column]["mean"] for row in rows.values()) for column in COLUMNS}
        for name, row in rows.items():
            cells = [
                _cell(row[column], row["behind"][column], row[column]["mean"] == best[column]) for column in COLUMNS
            ]
            lines.append(_line([name, *cells, f"{row['parameters']:,}"]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _heading(scale: Scale, seconds: float) -> str:
    made = {"Subjects": len(scale.subjects), "motions": len(scale.motions), "seeds": scale.seeds}
    counts = ", ".join(f"{name}: {count}" for name, count in made.items())
    counts += f", one pair in {scale.one_in}" if scale.one_in > 1 else ""
    effort = f"training steps: {scale.share:.0%}, sampling steps: {scale.sampling_steps}; {seconds / 60:.0f} minutes"
    return (
        f"# The paper's comparison on the embedded base\n\n{counts}, {effort}.\n"
        "Mean and 95 % bootstrap interval over videos; every measure is a share, 1 is best.\n"
        "▼ below and ▲ above the table's last system: 0 is outside of the 95 % bootstrap interval of the difference,\n"
        "video by video (same prompt, same noise)."
    )


def _cell(value: Mapping[str, float], behind: Mapping[str, float], best: bool) -> str:
    mean = f"{value['mean']:.3f}"
    mark = " ▼" if behind["low"] > 0 else " ▲" if behind["high"] < 0 else ""
    return f"{f'**{mean}**' if best else mean}{mark} ({value['low']:.3f} to {value['high']:.3f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def figure(tables: Sequence[Table], results: Results, scale: Scale) -> Tensor:
    """Videos of each system of each table, side by side under what was asked for: [3, H, W]."""
    rows = []
    for table in tables:
        asked = cases(table.task, scale)
        shown = sorted({0, len(asked) // 2})
        rows.append((f"Table {table.number}: asked for", _frames(_truth(asked[index]) for index in shown)))
        for name, measured in results[table.number].items():
            rows.append((name, _frames(frames_of(measured.strips[index]) for index in shown)))
    return contact_sheet(rows, title="The same videos by each system", tile=world.SIZE)


def _frames(videos: Iterable[Tensor]) -> list[Tensor]:
    return [frame for video in videos for frame in video]


def _truth(case: Case) -> Tensor:
    """What a case asks for, [F, 3, H, W]."""
    return world.render(case.truth).frames
