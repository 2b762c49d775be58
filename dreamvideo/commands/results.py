"""Where a training writes: its file's name, the state beside it to go on from, and what of it is kept.

NAME.state holds a training's states and run.json, which tells whose they are. A name made by default belongs to one
training: the first of NAME, NAME-2, ... that is free, or the one that the same training began. Same are two trainings
of the same data and settings on the same base, whatever the steps.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import check_writable, read_small, write_json
from ..fingerprint import same_base
from ..limits import parsed
from ..locks import Locked, locked, reserved
from ..training import steps_of_state

RECORD = "run.json"
STAGES = ("token", "identity", "weights", "motion")
PART = re.compile(rf"\.(?:{'|'.join(STAGES)}|run)\.[0-9a-f]{{8}}\.part\.(?:safetensors|json)")  # of a killed run
# Of a training that is done: a stage of DreamVideo on the full-size base has up to 1 GB, fine-tuning of a half 8 GB.
KEPT_BYTES = 2 << 30
DIFFERENT = {
    "data": "other photographs, clips or captions",
    "base": "another base",
}


@dataclass(frozen=True)
class Run:
    """What a training is, told before its first step.

    about: what must be the same for it to go on from a state; steps: of its last stage; stages: which there are;
    previews: whether there will be any.
    """

    about: Mapping[str, Any]
    steps: int
    stages: Sequence[str]
    previews: bool = False


@dataclass(frozen=True)
class Place:
    """A training's file and its states. finished: the file is there already, of as many steps as are asked for."""

    out: Path
    finished: bool = False

    @property
    def states(self) -> Path:
        return _states_of(self.out)


def check_result(out: Path, stages: Sequence[str], preview_steps: int = 0) -> None:
    """Raise ValueError, before the first step, where the adapter or anything beside it could not be written."""
    check_writable(*companions(out, stages, preview_steps))


def companions(out: Path, stages: Sequence[str], preview_steps: int = 0) -> list[Path]:
    """All files that a training may write. preview_steps: at most; 0 for no previews."""
    states = [_states_of(out) / f"{stage}.safetensors" for stage in stages]
    previews = [preview_path(out, stage, preview_steps) for stage in stages if preview_steps]
    return [out, *losses_paths(out), *states, _states_of(out) / RECORD, *previews]


def losses_paths(out: Path) -> tuple[Path, Path]:
    """The losses as a table and as a plot."""
    return out.with_suffix(".losses.csv"), out.with_suffix(".losses.png")


def preview_path(out: Path, stage: str, step: int) -> Path:
    return out.with_name(f"{out.stem}.{stage}-{step:05d}.gif")


@contextmanager
def claimed(out: Path | None, default: Path, run: Run, restart: bool) -> Iterator[Place]:
    """The place that a training has to itself while it goes on; what it is good for after its end is kept.

    out: the file asked for; None for one named after `default`, where nothing finished is ever replaced. restart: begin
    anew although there are states. Ctrl-C at any moment inside says what is kept. Raises ValueError where another
    process trains into the same file, and where an unfinished training of another kind is in the way.
    """
    with ExitStack() as held:
        place = Place(out) if out else _default_place(default, run, restart, held)
        if out:
            held.enter_context(locked(out))
        if place.finished:
            yield place
            return
        check_result(place.out, run.stages, run.steps if run.previews else 0)
        _make_room(place, run, restart)
        write_json(place.states / RECORD, _record(run, done=False))
        try:
            yield place
        except BaseException as error:
            kept = any(place.states.glob("[!.]*.safetensors"))
            if not kept:
                remove_states(place.states)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(_interrupted(place.states, kept)) from None
            raise
        if sum(path.stat().st_size for path in _written(place.states)) > KEPT_BYTES:
            remove_states(place.states)
        else:
            write_json(place.states / RECORD, _record(run, done=True))


def remove_states(folder: Path) -> None:
    """Delete what trainings wrote into a folder of states, and the folder where nothing else is in it."""
    parts = [path for path in folder.glob("*") if PART.fullmatch(path.name)]
    for path in (*_written(folder), *parts, folder / RECORD):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # never there, or with something of the user's in it
        folder.rmdir()


def _default_place(default: Path, run: Run, restart: bool, held: ExitStack) -> Place:
    """A name that is free or this training's own, locked until `held` is left."""
    finished: list[tuple[int, Path]] = []
    for out in _earlier(default):
        record = _read_record(_states_of(out))
        if record is None or _difference(record["run"], run.about):
            continue
        if not (record["done"] and out.exists()):
            with suppress(Locked):  # the same training, at this moment: this one is for another name
                held.enter_context(locked(out))
                return Place(out)
        elif record["steps"] <= run.steps and not restart:
            finished.append((record["steps"], out))
    steps, longest = max(finished, default=(0, None))
    if steps == run.steps:
        return Place(longest, finished=True)
    place = Place(held.enter_context(reserved(default, _is_free)))
    if longest is not None:
        with suppress(Locked), locked(longest):
            remove_states(place.states)
            _states_of(longest).rename(place.states)
    return place


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
    return all(path == _states_of(out) and _is_abandoned(path) for path in there)


def _is_abandoned(folder: Path) -> bool:
    """Whether these are the states of a training that ended before its first."""
    return folder.is_dir() and all(path.name == RECORD for path in folder.iterdir())


def _make_room(place: Place, run: Run, restart: bool) -> None:
    """Take away the states that are not gone on from, or say why they are not taken away."""
    record = _read_record(place.states)
    difference = "" if record is None else _difference(record["run"], run.about)
    shorter = record is not None and record["done"] and record["steps"] > run.steps
    if difference and not (restart or record["done"]) and _written(place.states):
        raise ValueError(
            f"{place.states} holds an unfinished training with {difference}; go back to it, begin anew with --restart "
            "or name another --out."
        )
    if restart or difference or shorter:
        remove_states(place.states)


def _interrupted(folder: Path, kept: bool) -> str:
    if kept:
        return f"Training was stopped: its state is kept in {folder}, and the same command goes on from there."
    return "Training was stopped: there was no state to keep yet, and the same command begins anew."


def _record(run: Run, done: bool) -> dict[str, Any]:
    return {"run": run.about, "steps": run.steps, "done": done}


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json tells; None where there is none that can be read."""
    try:
        record = parsed(read_small(folder / RECORD).decode())
    except ValueError:
        return None
    kinds = {"run": dict, "steps": int, "done": bool}
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
        return None
    return record


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what two trainings differ; empty where they are the same."""
    for key, value in json.loads(json.dumps(ours)).items():
        there = theirs.get(key)
        if there != value and not (key == "base" and same_base(str(there), value)):
            return DIFFERENT.get(key, f"{key} {there} instead of {value}")
    return ""


def _written(folder: Path) -> list[Path]:
    """The files of a folder that are states of a training, however they came there: nothing else is ours."""
    return [path for stage in STAGES if _is_state(path := folder / f"{stage}.safetensors")]


def _is_state(path: Path) -> bool:
    try:
        return path.is_file() and steps_of_state(path) >= 0
    except ValueError:
        return False


def _states_of(out: Path) -> Path:
    return out.with_suffix(".state")
