"""What a run tells: sentences, and progress as one line that is rewritten, or a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

LIVE_SECONDS = 0.1  # between rewritings on a terminal
LOG_SECONDS = 5.0  # between lines in a file or a pipe


class Terminal:
    """Writes to a stream and knows whether a progress line stands unfinished there."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self._told = float("-inf")
        self._width = 0  # of the unfinished line

    def say(self, text: str) -> None:
        """A line of its own."""
        self.close()
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """End the progress line, if one is unfinished."""
        if self._width:
            print(file=self.stream, flush=True)
        self._width = 0

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

    def sampling(self, what: str) -> Callable[[int, int, Any], None]:
        """`diffusion.ddim_sample`'s callback."""
        began = time.monotonic()

        def tell(done: int, steps: int, estimate: Any) -> None:
            seconds_left = (time.monotonic() - began) / done * (steps - done)
            self._progress(f"{what}: step {done}/{steps}, {duration(seconds_left)} left", last=done == steps)

        return tell

    def _progress(self, text: str, last: bool) -> None:
        now = time.monotonic()
        if not last and now - self._told < (LIVE_SECONDS if self.live else LOG_SECONDS):
            return
        self._told = now
        if self.live:
            print("\r" + text.ljust(self._width), end="", file=self.stream, flush=True)
            self._width = len(text)
        else:
            print(text, file=self.stream, flush=True)
        if last:
            self.close()


def duration(seconds: float) -> str:
    """E.g. "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
