"""A video as a folder of PNG frames: whole or absent, and never in the place of anything but such a video."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..safety.paths import PathLike, atomic_folder, check_folder_writable
from .writing import SOFTWARE, write_png

FRAME_NAME = re.compile(r"\d{4,}\.png")


def write_frames(path: PathLike, frames: Tensor) -> None:
    """Write frames [F, 3, H, W], floating in 0..1 or uint8, as 0000.png, 0001.png, ... of a folder, atomically.

    A folder that is there is replaced where it is empty or holds nothing but frames written here. Raises ValueError for
    any other and for what cannot be written.
    """
    with atomic_folder(path) as part:
        for index, frame in enumerate(frames):
            write_png(part / f"{index:04d}.png", frame)
        _check_replaceable(Path(path))


def check_frames_writable(path: PathLike) -> None:
    """Raise ValueError, before any work is done, where `write_frames` would."""
    _check_replaceable(Path(path))
    check_folder_writable(path)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} cannot be written: it is a file already.")
    strangers = [entry.name for entry in folder.iterdir() if not _written_here(entry)]
    if strangers:
        raise ValueError(
            f"The folder {folder} holds {min(strangers)!r}, which is no frame of a video made here, and is not "
            "replaced; name another."
        )


def _written_here(path: Path) -> bool:
    if not (FRAME_NAME.fullmatch(path.name) and path.is_file()):
        return False
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return picture.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):
        return False
