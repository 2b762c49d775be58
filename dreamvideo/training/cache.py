"""Encoded photographs and clips on disk, by their content: what was encoded before is read and not encoded again."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..files.tensors import CheckpointError, open_file, write_safetensors

log = logging.getLogger(__name__)

FORMAT = {"format": "dreamvideo-encoded", "format_version": "1"}
MOST_BYTES = 4 << 30  # of a cache; a clip of 32 frames of 256 x 256 takes 1.2 MB


def default_cache() -> Path:
    """A folder of ours where the system keeps what may be deleted any time."""
    from platformdirs import user_cache_path

    return user_cache_path("dreamvideo", appauthor=False) / "encoded"


def read_cached(folder: Path, key: str, frames: int) -> dict[str, Tensor] | None:
    """mean, std [4, N, h, w] and features [N, D] of N = `frames`, as they were written; None where there are none.

    What is damaged counts as missing, and will be written again.
    """
    path = _path(folder, key)
    try:
        file = open_file(path)
        if not {**FORMAT, "key": key}.items() <= file.metadata.items():
            return None
        found = {name: value.read().clone() for name, value in file.tensors.items()}
    except (CheckpointError, OSError, RuntimeError):
        return None
    if not _usable(found, frames):
        return None
    with suppress(OSError):
        os.utime(path)  # the longest unused go first
    return found


def write_cached(folder: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Write them, atomically, and delete what was not used for longest where the cache becomes too large.

    A cache that cannot be written is told once and costs no training.
    """
    try:
        write_safetensors(_path(folder, key), tensors, {**FORMAT, "key": key})
        _prune(folder)
    except (OSError, ValueError) as error:
        _tell(folder, " ".join(str(error).split()).rstrip("."))


def _usable(found: Mapping[str, Tensor], frames: int) -> bool:
    if found.keys() != {"mean", "std", "features"}:
        return False
    mean, std, features = found["mean"], found["std"], found["features"]
    shaped = mean.ndim == 4 and mean.shape == std.shape and mean.shape[1] == frames and features.ndim == 2
    exact = all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in found.values())
    return shaped and exact and len(features) == frames


def _prune(folder: Path) -> None:
    entries = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # another process prunes, too
            found = path.stat()
            entries.append((found.st_mtime, found.st_size, path))
    excess = sum(size for _, size, _ in entries) - MOST_BYTES
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        with suppress(OSError):
            path.unlink()
        excess -= size


def _path(folder: Path, key: str) -> Path:
    return Path(folder) / f"{key}.safetensors"


_told: set[Path] = set()


def _tell(folder: Path, reason: str) -> None:
    if folder not in _told:
        _told.add(folder)
        log.warning("What is encoded is not kept for the next run: %s.", reason)
