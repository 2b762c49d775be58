"""Files on disk: whole or absent, and inside the folder they were meant for."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# A part file nobody has touched for this long belongs to a run that was killed.
STALE_SECONDS = 600.0
# Writers in C++ or Rust report a full disk in their own words; less room than this says the same.
FULL_DISK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix; what is written there becomes `path` on success.

    The folder is created where it is missing. The data reaches the disk before the name does, so whoever opens `path`
    sees the old file or the whole new one, after a crash too; on an error or Ctrl-C the temporary file is removed and
    the old one stays. Names of temporary files begin with a dot and end in `.part` + suffix.

    Raises ValueError when the file cannot be written (folder not writable, disk full).
    """
    target = Path(path)
    part = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_parts(target)
        yield part
        _sync(part)
        os.replace(part, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {_reason(error)}.") from error
    except Exception as error:
        if _disk_is_full(target.parent):  # asked before the part file gives its room back
            raise ValueError(f"{target} cannot be written: the disk is full.") from error
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as readable JSON, atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raise ValueError, saying why, unless the path is of a file that can be read and holds something.

    Asked before anything opens it: a pipe or a device would be waited for, or read without end.
    """
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb"):
                pass
    except FileNotFoundError as error:
        raise ValueError(f"{os.fspath(path)} does not exist.") from error
    except OSError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: {_reason(error)}.") from error
    except ValueError as error:  # a NUL in it
        raise ValueError(f"{os.fspath(path)} is not the name of a file.") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{os.fspath(path)} is not a file but a folder.")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{os.fspath(path)} is not a file but a pipe or a device.")
    if found.st_size == 0:
        raise ValueError(f"{os.fspath(path)} is empty.")


def inside(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """The real path of `name` below `folder`. Raises ValueError when it leads out of the folder, by links too."""
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, name))
    try:
        contained = os.path.commonpath([root, path]) == root and path != root
    except ValueError:  # two drives have no common path
        contained = False
    if not contained:
        raise ValueError(f"{os.fspath(name)!r} is not a file below the folder {root}.")
    return Path(path)


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # The rename is already in place; not every system can open a folder to make it durable.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_stale_parts(target: Path) -> None:
    start, end = f".{target.stem}.", f".part{target.suffix}"
    for entry in target.parent.iterdir():
        token = entry.name[len(start) : -len(end)]
        if entry.name.startswith(start) and entry.name.endswith(end) and len(token) == 8:
            with suppress(OSError):
                if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                    entry.unlink()


def _reason(error: OSError) -> str:
    reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    return reason[:1].lower() + reason[1:]


def _disk_is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < FULL_DISK_BYTES
    return False
