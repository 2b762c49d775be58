"""A folder of training states: which files of it are ours, and moving and deleting those alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .state import steps_of_state

RECORD = "run.json"
STATE = re.compile(r"(?:token|identity|weights|motion)(?:-[0-9a-f]{12})?\.safetensors")
# Left by a run that was killed while it wrote.
PART = re.compile(r"\.(?:token|identity|weights|motion|run)[-0-9a-f]*\.[0-9a-f]{8}\.part\.(?:safetensors|json)")


def state_file(states: Path, stage: str, word: str) -> Path:
    """The state of a stage whose tokens have this digest; empty for one that has none from a stage before it."""
    return states / (f"{stage}-{word[:12]}.safetensors" if word else f"{stage}.safetensors")


def forget_others(path: Path) -> None:
    """Delete a stage's states under other tokens than this one's: they cannot be gone on from."""
    stage = path.stem.partition("-")[0]
    for other in set(path.parent.glob(f"{stage}*.safetensors")) - {path}:
        if is_state(other):
            other.unlink()


def remove_states(folder: Path) -> None:
    """Delete what trainings wrote into a folder of states, and the folder where nothing else is in it."""
    parts = [path for path in folder.glob("*") if PART.fullmatch(path.name)]
    for path in (*states_in(folder), *parts, folder / RECORD):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # never there, or with something of the user's in it
        folder.rmdir()


def longer_than(states: Path, steps: Mapping[str, int]) -> str:
    """Which state has more steps than are asked for, as the beginning of a sentence; empty where none has."""
    for path in states_in(states):
        done, asked = steps_of_state(path), steps.get(path.stem.partition("-")[0])
        if asked is not None and done > asked:
            return f"The training in {states} has done {done} steps, more than the {asked} asked for"
    return ""


def move_states(source: Path, target: Path) -> None:
    """Training states and their record into another folder; what else lies there stays, and the folder with it."""
    for path in (*states_in(source), source / RECORD):
        if path.exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target / path.name)
    with suppress(OSError):  # never there, or with something of the user's in it
        source.rmdir()


def states_in(folder: Path) -> list[Path]:
    """The files of a folder that are states of a training, however they came there: nothing else is ours."""
    return [path for path in sorted(folder.glob("*.safetensors")) if STATE.fullmatch(path.name) and is_state(path)]


def is_state(path: Path) -> bool:
    try:
        return path.is_file() and steps_of_state(path) >= 0
    except ValueError:
        return False
