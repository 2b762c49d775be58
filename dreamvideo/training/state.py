"""A training's state file: what it tells of its run, and whether a run may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files.fingerprint import same_base
from ..files.tensors import open_file
from ..safety.limits import LIMITS, bare, json_object, parsed, whole
from .settings import LATER_SETTINGS

STATE_FORMAT = "dreamvideo-training"


BEGIN_ANEW = "begin anew with --restart (in ComfyUI: switch resume off)"


def steps_of_state(path: Path) -> int:
    """How many steps a state file has done. Raises ValueError when it is no whole state."""
    return read_state(path, tensors_too=False)[0]["step"]


def read_state(path: Path, tensors_too: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a state file tells of itself, and its tensors where the whole of it is wanted."""
    try:
        file = open_file(path)
        about = parsed(file.metadata.get(STATE_FORMAT, "null"))
        if not isinstance(about, dict) or about.get("format") != STATE_FORMAT:
            raise ValueError("it holds no training state")
        whole("its step", about.get("step"), int(LIMITS["steps"].most), 0)
        json_object("what it tells of its run", about.get("run"))
        tensors = {name: value.read().clone() for name, value in file.tensors.items() if tensors_too}
    except ValueError as error:
        raise not_whole(path, error) from error
    return about, tensors


def not_whole(path: Path, error: Exception) -> ValueError:
    reason = bare(" ".join(str(error).split()).rstrip("."))
    return ValueError(f"{path} is no whole training state ({reason}); delete it, or {BEGIN_ANEW}.")


def check_same_run(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    names = {
        "base": "another base",
        "data": "other data",
        "start": "another starting point (class word, adapter shape)",
    }
    theirs = {**LATER_SETTINGS, **theirs}
    for key, value in {**LATER_SETTINGS, **ours}.items():
        there = theirs.get(key)
        if there == value or (key == "base" and same_base(str(there), value)):
            continue
        what = names.get(key, f"{key} {there} instead of {value}")
        raise ValueError(f"{path} holds a run with {what}; go back to it, or {BEGIN_ANEW}.")
