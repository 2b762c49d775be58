"""The loss of every step, written while a training goes on: a table beside the adapter, and TensorBoard where it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..safety.paths import write_text

HEADER = "stage,step,loss\n"


class LossLog:
    """A stage's losses appended to a table. Rows from a step on that is made again, after a kill, are replaced.

    before: what the stages before this one lost, stage -> loss of each of its steps.
    """

    def __init__(self, table: Path, stage: str, before: Mapping[str, Sequence[float]]) -> None:
        self.table, self.stage, self.before = table, stage, before
        self.board: Any = None
        self.begun = False

    def add(self, step: int, loss: float) -> None:
        if not self.begun:
            self._begin(step)
        with open(self.table, "a", encoding="utf-8", newline="") as file:
            file.write(_row(self.stage, step, loss))
        if self.board is not None:
            self.board.add_scalar(f"loss/{self.stage}", loss, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def _begin(self, step: int) -> None:
        earlier = _read(self.table, self.stage)[: step - 1]
        write_losses(self.table, {**self.before, self.stage: earlier})
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.table.with_suffix("").with_suffix(".tensorboard"), purge_step=step)
        self.begun = True


def write_losses(table: Path, losses: Mapping[str, Sequence[float]]) -> None:
    """The whole table: stage -> loss of each of its steps. Atomic."""
    rows = [_row(stage, step, loss) for stage, values in losses.items() for step, loss in enumerate(values, start=1)]
    write_text(table, HEADER + "".join(rows))


def _row(stage: str, step: int, loss: float) -> str:
    return f"{stage},{step},{loss!r}\n"


def _read(table: Path, stage: str) -> list[float]:
    """A stage's losses as far as the table tells them in order; none where it is no such table."""
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
        rows = [line.split(",") for line in lines if line.startswith(f"{stage},")]
        values = [float(value) for _, _, value in rows]
        return values if [int(step) for _, step, _ in rows] == list(range(1, len(rows) + 1)) else []
    except (OSError, ValueError):
        return []
