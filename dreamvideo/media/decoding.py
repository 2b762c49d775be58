"""What reading pictures and reading videos share."""

from __future__ import annotations

from collections.abc import Callable, Generator
from io import BytesIO
from pathlib import Path

from torch import Tensor

from ..safety.paths import check_readable
from .folders import PathLike

Size = tuple[int, int]
"""(height, width) in pixels."""

SHORTEST_SIDE = 16

Frame = Callable[[], Tensor]
"""Gives the pixels of a decoded frame, uint8 [3, H, W], until the next one is asked for."""

Frames = Generator[tuple[Frame | None, float], None, None]
"""Frames as they come, each with the seconds at which it appears; None for a damaged one. To be closed."""


class NoPictures(ValueError):
    """A file that holds sound or nothing where moving pictures were looked for."""


def existing_file(path: PathLike) -> Path:
    """The path, of a file that is there and holds something; ValueError else."""
    check_readable(path)
    return Path(path)


def source_name(source: Path | BytesIO) -> str:
    """What messages call it."""
    return "The video" if isinstance(source, BytesIO) else str(source)
