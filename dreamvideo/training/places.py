"""Where a training writes: its file, the states to go on from, and what of them is kept. One rule for every face.

A folder of states holds a training's states and run.json, which tells whose they are. A file's name made by default
belongs to one training: the first of NAME, NAME-2, ... that is free, or the one that the same training began. Same are
two trainings of the same data and settings on the same base, whatever the steps.

A training goes on from its states where they have no more steps than are asked for. Fewer steps than a finished one has
begin anew; fewer than an unfinished one has are refused, for they would throw away what its user has nowhere else.
"""

from __future__ import annotations

import glob
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.fingerprint import same_base
from ..safety.limits import parsed
from ..safety.locks import Locked, locked, reserved
from ..safety.paths import check_writable, read_small, write_json
from .settings import LATER_SETTINGS
from .state import BEGIN_ANEW
from .state_folder import RECORD, longer_than, move_states, remove_states, state_file, states_in

# Of a training that is done: a stage of DreamVideo on the full-size base has up to 1 GB, fine-tuning of a half 8 GB.
KEPT_BYTES = 2 << 30
SHELVED = 3  # trainings that are done, in a folder that many share; older ones make room
DIFFERENT = {
    "data": "other photographs, clips or captions",
    "base": "another base",
}


@dataclass(frozen=True)
class Run:
    """What a training is, told before its first step.

    about: what must be the same for it to go on from a state; steps: stage -> how many, in their order; previews,
    snapshots: whether there will be any.
    """

    about: Mapping[str, Any]
    steps: Mapping[str, int]
    previews: bool = False
    snapshots: bool = False


@dataclass(frozen=True)
class Place:
    """A training's file and its folder of states.

    shelf: the folder into which the states move once the training is done; None where they stay. finished: the file is
    there already, of as many steps as are asked for.
    """

    out: Path
    states: Path
    shelf: Path | None = None
    finished: bool = False


def beside(out: Path, finished: bool = False) -> Place:
    """The place of a file whose states lie beside it."""
    return Place(out, out.with_suffix(".state"), finished=finished)


def companions(place: Place, run: Run) -> list[Path]:
    """All files that a training may write."""
    out, most = place.out, max(run.steps.values(), default=0)
    states = [state_file(place.states, stage, word) for stage in run.steps for word in ("", f"{0:012x}")]
    previews = [preview_path(out, stage, most) for stage in run.steps if run.previews]
    snapshots = [snapshot_path(out, most), sheet_path(out)] if run.snapshots else []
    return [out, run_file_path(out), *losses_paths(out), *states, place.states / RECORD, *previews, *snapshots]


def losses_paths(out: Path) -> tuple[Path, Path]:
    """The losses as a table and as a plot."""
    return out.with_suffix(".losses.csv"), out.with_suffix(".losses.png")


def run_file_path(out: Path) -> Path:
    """What makes it again."""
    return out.with_suffix(".toml")


def preview_path(out: Path, stage: str, step: int) -> Path:
    return out.with_name(f"{out.stem}.{stage}-{step:05d}.gif")


def snapshot_path(out: Path, step: int) -> Path:
    """An adapter as it was after so many steps."""
    return out.with_name(f"{out.stem}.step-{step:05d}{out.suffix}")


def sheet_path(out: Path) -> Path:
    """What every snapshot makes of one prompt and seed."""
    return out.with_suffix(".steps.png")


def snapshots_of(out: Path) -> list[tuple[int, Path]]:
    """(steps, file) of an adapter's snapshots, in their order."""
    found = []
    for path in out.parent.glob(f"{glob.escape(out.stem)}.step-*{glob.escape(out.suffix)}"):
        number = re.fullmatch(r"\.step-(\d{5,})", path.stem.removeprefix(out.stem))
        if number:
            found.append((int(number[1]), path))
    return sorted(found)


@contextmanager
def claimed(
    out: Path | None, default: Path, run: Run, restart: bool, say: Callable[[str], None] = lambda text: None
) -> Iterator[Place]:
    """The place that a training has to itself while it goes on, its states beside its file.

    out: the file asked for; None for one named after `default`, where nothing finished is ever replaced. restart: begin
    anew although there are states. Ctrl-C at any moment inside says what is kept. Raises ValueError where another
    process trains into the same file, and where an unfinished training of another kind is in the way.
    """
    with ExitStack() as held:
        place = beside(out) if out else _default_place(default, run, restart, held)
        if out:
            held.enter_context(locked(out))
        if place.finished:
            yield place
            return
        with _working(place, run, restart, say):
            yield place


@contextmanager
def shelved(
    out: Path, states: Path, shelf: Path, run: Run, restart: bool, say: Callable[[str], None] = lambda text: None
) -> Iterator[Place]:
    """As `claimed`, of a training whose states have a folder of their own, named by what it is.

    shelf: where the states of what is done lie until the folder is wanted again, a few trainings' at most.
    """
    with locked(states):
        if not states_in(states):
            move_states(shelf / states.name, states)
        place = Place(out, states, shelf)
        with _working(place, run, restart, say):
            yield place


@contextmanager
def _working(place: Place, run: Run, restart: bool, say: Callable[[str], None]) -> Iterator[None]:
    check_writable(*companions(place, run))
    note = _make_room(place, run, restart)
    if note:
        say(note)
    write_json(place.states / RECORD, _record(run, done=False))
    try:
        yield
    except BaseException as error:
        kept = bool(states_in(place.states))
        if not kept:
            remove_states(place.states)
        if place.shelf is not None and not place.out.exists():  # its states tell its losses, under another name
            for path in losses_paths(place.out):
                path.unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_interrupted(place.states, kept)) from None
        raise
    write_json(place.states / RECORD, _record(run, done=True))
    if place.shelf is not None:
        _shelve(place.states, place.shelf)
    elif sum(path.stat().st_size for path in states_in(place.states)) > KEPT_BYTES:
        remove_states(place.states)


def _default_place(default: Path, run: Run, restart: bool, held: ExitStack) -> Place:
    """A name that is free or this training's own, locked until `held` is left."""
    finished: list[tuple[int, Path]] = []
    for out in _earlier(default):
        record = _read_record(beside(out).states, run)
        if record is None or _difference(record.about, run.about):
            continue
        if not (record.done and out.exists()):
            with suppress(Locked):  # the same training, at this moment: this one is for another name
                held.enter_context(locked(out))
                return beside(out)
        elif not restart and _no_more(record.steps, run.steps):
            if record.steps == run.steps:
                return beside(out, finished=True)
            finished.append((sum(record.steps.values()), out))
    place = beside(held.enter_context(reserved(default, _is_free)))
    longest = max(finished, default=(0, None))[1]
    if longest is not None:
        with suppress(Locked), locked(longest):
            remove_states(place.states)
            beside(longest).states.rename(place.states)
    return place


def _no_more(theirs: Mapping[str, int], ours: Mapping[str, int]) -> bool:
    """Whether no stage has more steps there than here."""
    return all(count <= ours.get(stage, 0) for stage, count in theirs.items())


def _earlier(default: Path) -> list[Path]:
    """The names made from a default that have states, in their order."""
    found = {}
    for states in default.parent.glob(f"{glob.escape(default.stem)}*.state"):
        number = re.fullmatch(r"(?:-(\d+))?", states.stem.removeprefix(default.stem))
        if number:
            found[int(number[1] or 1)] = states.with_suffix(default.suffix)
    return [found[number] for number in sorted(found)]


def _is_free(out: Path) -> bool:
    """Whether nothing is there that a training into `out` would replace, on file systems without cases too."""
    start = f"{out.stem}.".casefold()
    there = [path for path in out.parent.glob("*") if path.name.casefold().startswith(start)]
    return all(path == beside(out).states and _is_abandoned(path) for path in there)


def _is_abandoned(folder: Path) -> bool:
    """Whether these are the states of a training that ended before its first."""
    return folder.is_dir() and all(path.name == RECORD for path in folder.iterdir())


def _make_room(place: Place, run: Run, restart: bool) -> str:
    """Take away the states that are not gone on from, and say so, or why they are not taken away."""
    record = _read_record(place.states, run)
    difference = "" if record is None else _difference(record.about, run.about)
    unfinished = record is None or not record.done
    if restart:
        remove_states(place.states)
    elif difference:
        if unfinished and states_in(place.states):
            raise ValueError(
                f"{place.states} holds an unfinished training with {difference}; go back to it, {BEGIN_ANEW} or name "
                "another file."
            )
        remove_states(place.states)
    elif longer := longer_than(place.states, run.steps):
        if unfinished:
            raise ValueError(f"{longer}; ask for more steps, or {BEGIN_ANEW}.")
        remove_states(place.states)
        return f"{longer}: beginning anew."
    return ""


def _interrupted(folder: Path, kept: bool) -> str:
    if kept:
        return f"Training was stopped: its state is kept in {folder}, and the same command goes on from there."
    return "Training was stopped: there was no state to keep yet, and the same command begins anew."


@dataclass(frozen=True)
class _Record:
    """What run.json tells. steps: stage -> how many were asked for."""

    about: Mapping[str, Any]
    steps: Mapping[str, int]
    done: bool


def _record(run: Run, done: bool) -> dict[str, Any]:
    return {"run": run.about, "steps": run.steps, "done": done}


def _read_record(folder: Path, run: Run) -> _Record | None:
    """None where there is none that can be read. run: the one at hand, for its stages' names."""
    try:
        record = parsed(read_small(folder / RECORD).decode())
    except ValueError:
        return None
    kinds = {"run": dict, "steps": (dict, int), "done": bool}
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
        return None
    steps = record["steps"]
    if isinstance(steps, int):  # as first written: of the last stage, and a token's among the settings
        steps = {"token": record["run"].get("token_steps"), list(run.steps)[-1]: steps}
    return _Record(
        record["run"], {key: count for key, count in steps.items() if isinstance(count, int)}, record["done"]
    )


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what two trainings differ; empty where they are the same."""
    theirs = {**LATER_SETTINGS, **theirs}
    for key, value in {**LATER_SETTINGS, **json.loads(json.dumps(ours))}.items():
        there = theirs.get(key)
        if there != value and not (key == "base" and same_base(str(there), value)):
            return DIFFERENT.get(key, f"{key} {there} instead of {value}")
    return ""


def _shelve(states: Path, shelf: Path) -> None:
    """States of what is done can be gone on from, in a folder that others may clear; the oldest make room."""
    try:
        move_states(states, shelf / states.name)
        done = sorted(shelf.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:  # a full disk there: the states stay where they are, and are found there
        return
    for old in done[SHELVED:]:
        shutil.rmtree(old, ignore_errors=True)
