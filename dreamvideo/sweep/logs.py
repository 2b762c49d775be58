"""The log of a job: a line for each thing it says, and now and then how far it is."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ..safety.texts import printable

SECONDS = 10.0  # between two lines of progress


def log_path(name: str) -> str:
    """Where the log of a job lies, below the sweep's folder."""
    return f"logs/{name}.log"


class JobLog:
    """Appends to a job's log, where there is a folder for it. A log that cannot be written fails no job."""

    def __init__(self, out: Path | None = None, name: str = "") -> None:
        self.path = None if out is None else out / log_path(name)
        self._file: TextIO | None = None
        self._told = float("-inf")

    def __enter__(self) -> JobLog:
        return self

    def __exit__(self, *raised: Any) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()

    def say(self, text: str) -> None:
        with suppress(OSError):
            if self._file is None and self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8", errors="replace")
            if self._file is not None:
                self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(text)}\n")
                self._file.flush()

    def progress(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told >= SECONDS:
            self._told = now
            self.say(text)
