"""Names that belong to one process while it works: what two runs would write at once, one of them has to itself."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# Of file systems that know no locks: there a run goes on without one.
UNKNOWN_THERE = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class Locked(ValueError):
    """Another process, or another thread of this one, holds the name."""


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the name `path`, of a file or a folder that may not be there yet.

    The lock is the operating system's, on a hidden file beside it: a process that is killed leaves the file, which then
    holds nobody up, and lets go of the lock. Raises Locked where the name is held, ValueError where its folder cannot
    be written.
    """
    path = Path(path)
    lock = path.parent / f".{path.name}.lock"
    try:
        handle = _acquire(path, lock)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}.") from error
    try:
        yield
    finally:
        _remove(lock)  # while it is held: whoever opened it meanwhile finds it gone and makes another
        os.close(handle)
        _remove(lock)  # Windows removes no open file


@contextmanager
def reserved(path: str | os.PathLike[str], is_free: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Hold the first of NAME, NAME-2, NAME-3, ... that is free and that no other process holds; which one it is.

    is_free: by default, that there is nothing of that name, or an empty folder.
    """
    is_free = is_free or _nothing_there
    for candidate in numbered(Path(path)):
        if not is_free(candidate):
            continue
        with ExitStack() as held:
            try:
                held.enter_context(locked(candidate))
            except Locked:
                continue
            if is_free(candidate):  # whoever held it a moment ago may have written it
                yield candidate
                return


def numbered(path: Path) -> Iterator[Path]:
    """NAME, NAME-2, NAME-3, ..., each with the suffix."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _nothing_there(path: Path) -> bool:
    return not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))


def _acquire(path: Path, lock: Path) -> int:
    """The open lock file, locked, and still the one that the name leads to."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if not _try(handle):
            owner = os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            process = f"process {owner}" if owner else "another process"
            raise Locked(f"{path} is being written by {process}; wait for it or name another.")
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
                return handle
        os.close(handle)


def _try(handle: int) -> bool:
    try:
        _lock(handle)
    except OSError as error:
        return error.errno in UNKNOWN_THERE
    return True


if os.name == "nt":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 30, os.SEEK_SET)  # beyond the text, which others could not read if it were locked
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(handle, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(lock: Path) -> None:
    with suppress(OSError):
        lock.unlink()
