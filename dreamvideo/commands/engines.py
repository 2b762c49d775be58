"""Who does the jobs of a sweep or of the comparison: this process, or Ray's workers where --ray asks for them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..files.base import PARTS
from ..sweep.bases import BaseSpec
from ..sweep.on_ray import LOCAL, RayExecutor
from .errors import explain
from .terminal import Terminal


@contextmanager
def ray_for(args: Namespace, out: Path, terminal: Terminal) -> Iterator[RayExecutor | None]:
    """Ray's workers while they are needed; None where the arguments do not ask for them."""
    if args.ray is None:
        yield None
        return
    terminal.say("Starting Ray ..." if args.ray == LOCAL else f"Joining Ray at {args.ray} ...")
    with closing(
        RayExecutor(out, explain, args.ray, cpus=int(args.cpus), gpus=args.gpus, say=terminal.say)
    ) as executor:
        terminal.say(f"{executor.about}.")
        yield executor


def spec_for(args: Namespace) -> BaseSpec | None:
    """The base that the arguments name, by absolute paths; None where they name none."""
    paths = {part: str(path.absolute()) for part in ("base", *PARTS) if (path := getattr(args, part))}
    if not paths:
        return None
    name = Path(next(iter(paths.values()))).stem
    return BaseSpec(name, paths.pop("base", None), **paths, **placed(args))


def placed(args: Namespace) -> dict[str, Any]:
    """Where and how the arguments want a base opened, as fields of `BaseSpec`."""
    given = {part: getattr(args, part) for part in ("device", "dtype", "encoder_dtype", "memory")}
    return {part: value for part, value in given.items() if value is not None}
