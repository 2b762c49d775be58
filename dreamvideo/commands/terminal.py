"""What a run tells: sentences, and progress as one line that is rewritten, or a line every few seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from ..safety.texts import printable

LIVE_SECONDS = 0.1  # between rewritings on a terminal
LOG_SECONDS = 5.0  # between lines in a file or a pipe


class NobodyReads(KeyboardInterrupt):
    """The stream was closed from the other side, as by `| head`: ends a run as Ctrl-C does, so its state is kept."""


class Terminal:
    """Writes to a stream and knows whether a progress line stands unfinished there.

    What it is given to tell may hold names and texts of any origin: what steers a terminal, or what the stream's
    encoding lacks, is written as its escape. stream: None, as Python's own where there is none, tells nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.live = stream is not None and stream.isatty()
        self._told = float("-inf")
        self._width = 0  # of the unfinished line

    def say(self, text: str) -> None:
        """A line of its own. Raises NobodyReads when nobody does, once."""
        self.close()
        self._write(f"{text}\n")

    def close(self) -> None:
        """End the progress line, if one is unfinished."""
        if self._width:
            self._width = 0
            self._write("\n")

    def flush(self) -> None:
        """As `say`, of what others have written to the stream."""
        self._write("")

    def _write(self, text: str, start: str = "") -> None:
        if self.stream is None:
            return
        try:
            self.stream.write(start + printable(text, self.stream.encoding))
            self.stream.flush()
        except OSError as error:
            self._let_go()
            reason = "" if isinstance(error, BrokenPipeError) else f"What is told cannot be written: {error.strerror}."
            raise NobodyReads(reason) from error

    def _let_go(self) -> None:
        """Python writes out what is left when it ends, and would complain: let that go nowhere."""
        stream, self.stream = self.stream, None
        with suppress(OSError, ValueError):  # a stream without a file of the system's
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if stream is not None:
                os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

    def training(self, stage: str) -> Callable[[int, float, float, float], None]:
        """`training.Callbacks.progress` of a stage. A speed of 0 stands for unknown."""

        def tell(step: int, loss: float, speed: float, seconds_left: float) -> None:
            if not speed:
                self._progress(f"{stage}: step {step}", last=False)
                return
            steps = step + round(seconds_left * speed)
            left = f"loss {loss:.4f}, {speed:.3g} steps/s, {duration(seconds_left)} left"
            self._progress(f"{stage}: step {step}/{steps}, {left}", last=step == steps)

        return tell

    def stage(self, stage: str, step: int, steps: int, loss: float, speed: float, seconds_left: float) -> None:
        """`runs.Reports.progress`."""
        self.training(stage)(step, loss, speed, seconds_left)

    def sampling(self, what: str) -> Callable[[int, int, Any], None]:
        """`diffusion.ddim_sample`'s callback."""
        began = time.monotonic()

        def tell(done: int, steps: int, estimate: Any) -> None:
            seconds_left = (time.monotonic() - began) / done * (steps - done)
            self._progress(f"{what}: step {done}/{steps}, {duration(seconds_left)} left", last=done == steps)

        return tell

    def counting(self, what: str) -> Callable[[int, int], None]:
        """E.g. "Encoding frame 3 of 32". In a file or a pipe what is done soon is not told."""
        began = time.monotonic()

        def tell(done: int, total: int) -> None:
            if self.live or time.monotonic() - began >= LOG_SECONDS:
                self._progress(f"{what} {done} of {total}", last=done == total)

        return tell

    def progress(self, text: str, last: bool) -> None:
        """A line of progress, if it is time for one; the last one always."""
        self._progress(text, last)

    def _progress(self, text: str, last: bool) -> None:
        now = time.monotonic()
        if not last and now - self._told < (LIVE_SECONDS if self.live else LOG_SECONDS):
            return
        self._told = now
        if self.live:
            self._write(text.ljust(self._width), start="\r")
            self._width = len(text)
        else:
            self._write(f"{text}\n")
        if last:
            self.close()


def duration(seconds: float) -> str:
    """E.g. "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
