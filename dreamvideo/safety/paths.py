"""Files on disk: whole or absent, and inside the folder they were meant for."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

# A part file nobody has touched for this long belongs to a run that was killed.
STALE_SECONDS = 600.0
# Writers in C++ or Rust report a full disk in their own words; less room than this says the same.
FULL_DISK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix; what is written there becomes `path` on success.

    The folder is created where it is missing. The data reaches the disk before the name does, so whoever opens `path`
    sees the old file or the whole new one, after a crash too; on an error or Ctrl-C the temporary file is removed and
    the old one stays. Names of temporary files begin with a dot and end in `.part` + suffix.

    Raises ValueError when the file cannot be written (folder not writable, disk full).
    """
    target = Path(path)
    part = _part_of(target)
    try:
        with _explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_parts(target)
            yield part
            _sync(part)
            os.replace(part, target)
            _sync_folder(target.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; the files written there become the folder `path` on success.

    They take the place of a folder that is there, with all it holds: ask first what that is. On an error or Ctrl-C the
    old folder stays. Raises ValueError when it cannot be written (parent not writable, disk full).
    """
    target = Path(os.path.realpath(path))  # through a link the folder it leads to is replaced, not the link
    part = _part_of(target)
    try:
        with _explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_parts(target)
            part.mkdir()
            yield part
            for file in part.iterdir():
                _sync(file)
            _exchange(part, target)
            _sync_folder(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_writable(*paths: PathLike) -> None:
    """Raise ValueError, before any work is done, where `atomic_path` could not write one of these. Leaves no trace."""
    for path in paths:
        if os.path.isdir(path):
            raise ValueError(f"{path} cannot be written: it is a folder already.")
        _try_part(Path(path))


def check_folder_writable(path: PathLike) -> None:
    """Raise ValueError, before any work is done, where `atomic_folder` could not write `path`. Leaves no trace."""
    _try_part(Path(os.path.realpath(path)))


def keep_apart(outputs: Iterable[PathLike], inputs: Iterable[PathLike]) -> None:
    """Raise ValueError where something that is to be written is read, too, under whatever name leads there."""
    there = [output for output in outputs if os.path.exists(output)]
    if not there:  # and so the inputs, which may be whole folders, are not even listed
        return
    for given in inputs:
        for output in there:
            if same_file(output, given):
                raise ValueError(f"{output} is read here and would be overwritten; name another output.")


def same_file(one: PathLike, other: PathLike) -> bool:
    """Whether two paths lead to the same file or folder, through links and other spellings too."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def write_text(path: PathLike, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: PathLike, obj: Any) -> None:
    """Write `obj` as readable JSON, atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_readable(path: PathLike) -> None:
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


def inside(folder: PathLike, name: PathLike) -> Path:
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


def _exchange(part: Path, target: Path) -> None:
    """A folder gets its final name; one that had it goes, once the new one is in its place."""
    if not target.exists():
        os.rename(part, target)
        return
    old = _part_of(target)
    os.rename(target, old)
    try:
        os.rename(part, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _part_of(target: Path) -> Path:
    """A temporary name beside a file or a folder, with the same suffix."""
    return target.parent / f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}"


def _remove_stale_parts(target: Path) -> None:
    part = re.compile(rf"\.{re.escape(target.stem)}\.[0-9a-f]{{8}}\.part{re.escape(target.suffix)}")
    for entry in target.parent.iterdir():
        if part.fullmatch(entry.name):
            with suppress(OSError):
                if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _try_part(target: Path) -> None:
    part, missing = _part_of(target), [folder for folder in target.parents if not os.path.exists(folder)]
    try:
        with _explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            part.touch(exist_ok=False)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """What goes wrong in writing, as a ValueError in one sentence."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {_reason(error)}.") from error
    except Exception as error:
        if _disk_is_full(target.parent):  # asked before the part file gives its room back
            raise ValueError(f"{target} cannot be written: the disk is full.") from error
        raise


def _reason(error: OSError) -> str:
    reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    return reason[:1].lower() + reason[1:]


def _disk_is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < FULL_DISK_BYTES
    return False
