"""Run files: options of a command in a file, which the command line's own go before."""

from __future__ import annotations

import argparse
import difflib
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.adapters import read_info
from ..files.base import PARTS
from ..files.toml import parse_toml, read_toml, toml_text
from ..safety.limits import short

OPTION = "--config"
OWN = ("help", "debug", "config")  # of a call, and so of no run file
# What an adapter does not tell: where a training's data and base lie, and how they are read.
SOURCES = ("images", "clips", "caption", "frames", "fps", "no_masks", "related", *PARTS, "base", "dtype")
PATHS = ("images", "clips", "adapter")  # as texts; the others are Paths


def run_file(args: Namespace, run: str, folder: Path) -> str:
    """The run file that makes a training again, as TOML, to be written into `folder`.

    args: the training's arguments, for its data and its base; run: what its adapter tells, for all else. Paths that
    were given as relative are written so, as seen from the folder.
    """
    recipe = parse_toml(run)
    given = {name: getattr(args, name, None) for name in SOURCES}
    sources = {name: _seen_from(folder, value) for name, value in given.items() if value}
    head = {"command": recipe["command"], **sources}
    return toml_text({**head, **{name: value for name, value in recipe.items() if name not in head}})


def _seen_from(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_seen_from(folder, Path(each)) for each in value]
    if not isinstance(value, Path) or value.is_absolute():
        return value
    # Links are followed up to the name alone, after which outcomes are called.
    real = os.path.join(os.path.realpath(value.parent), value.name)
    return Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()


def config_of(argv: Sequence[str]) -> str | None:
    """The run file that the arguments name; None where there is none, or the option lacks its value."""
    found = None
    for place, option in enumerate(argv):
        if option == "--":
            break
        if option == OPTION:
            found = argv[place + 1] if place + 1 < len(argv) else None
        elif option.startswith(f"{OPTION}="):
            found = option.removeprefix(f"{OPTION}=")
    return found


def set_defaults(parser: argparse.ArgumentParser, path: str) -> None:
    """Make what a run file says the defaults of a command's parser. Raises ValueError, naming the file and the key."""
    values = _read(path)
    command = values.pop("command", None)
    if command is not None and parser.prog.partition(" ")[2] != command:
        raise ValueError(f"{path} is for the command {short(command)}, and this is {parser.prog}.")
    actions = _by_name(parser)
    for key, value in values.items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            near = difflib.get_close_matches(key.replace("-", "_"), actions, 1)
            hint = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help."
            raise ValueError(f"{path}: {parser.prog} has no option {short(key)}; {hint}")
        try:
            found = _converted(action, key, value, Path(path).parent)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{path}: {short(key)[1:-1]}: {error}.") from error
        parser.set_defaults(**{action.dest: found})
        action.required = False
        if not action.option_strings:
            action.nargs = "*" if action.nargs == "+" else "?"


def _read(path: str) -> dict[str, Any]:
    """The options of a run file, or of an adapter, which tells its own."""
    if Path(path).suffix.lower() != ".safetensors":
        return read_toml(path)
    info = read_info(path)
    if info is None or not info.run:
        raise ValueError(f"{path} does not tell how it was trained; a run file does, or an adapter that has one in it.")
    try:
        return parse_toml(info.run)
    except ValueError as error:
        raise ValueError(f"{path} tells how it was trained, and {error}") from error


def _by_name(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every name of an option, with underscores, and of what stands without one."""
    found = {}
    for action in parser._actions:  # argparse has no other way to tell them
        if action.dest in OWN:
            continue
        negated = isinstance(action, argparse.BooleanOptionalAction)
        flags = [flag for flag in action.option_strings if not (negated and flag.startswith("--no-"))]
        names = [flag.removeprefix("--").replace("-", "_") for flag in flags] or [action.dest]
        found |= dict.fromkeys(names, action)
    return found


def _converted(action: argparse.Action, key: str, value: Any, folder: Path) -> Any:
    """A value as the command line would give it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"it is true or false, not {short(value)}")
        return value
    many = action.nargs == "+" or type(action).__name__ == "Several"
    each = value if many and isinstance(value, list) else [value]
    if not each or any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in each):
        raise ValueError(f"it is {'texts' if many else 'a text or a number'}, not {short(value)}")
    found = [_read_as(action, one, folder) for one in each]
    return found if many else found[0]


def _read_as(action: argparse.Action, value: str | int | float, folder: Path) -> Any:
    text = str(folder / value) if isinstance(value, str) and _is_path(action) else str(value)
    if action.choices is not None and text not in action.choices:
        raise ValueError(f"{short(text)} is none of {', '.join(action.choices)}")
    return action.type(text) if callable(action.type) else text


def _is_path(action: argparse.Action) -> bool:
    return action.type is Path or action.dest in PATHS
