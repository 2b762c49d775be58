"""When the frames of a clip appear, and which of them to take."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor

# What browsers give a frame of an animation that names no duration, or one of at most SHORTEST_SECONDS.
DEFAULT_FRAME_SECONDS = 0.1
SHORTEST_SECONDS = 0.01
# Streams that were cut and joined jump in time: backwards by more than frames are ever reordered, or far ahead.
BACK_SECONDS, AHEAD_SECONDS = 1.0, 10.0


@dataclass(frozen=True)
class FrameChoice:
    """Indices int64 [count] into a clip, the frames a second they amount to, and a note on what had to give."""

    indices: Tensor
    fps: float
    note: str = ""


@dataclass
class StreamClock:
    """Places the frames of a stream in time, in ticks of its time base, as the decoder gives them out.

    period: ticks a frame, for those that name no time. chunks: the container (AVI) holds no times but counts its
    chunks in the order of decoding; FFmpeg's guess of when they appear is wrong where frames are reordered, so each
    frame takes the earliest count that is still open. joins: whether the container may be joined of several.
    """

    period: float
    second: float
    chunks: bool = False
    joins: bool = False
    _open: list[float] = field(default_factory=list)
    _first: int | None = None
    _delay: float | None = None
    _before: float | None = None
    _offset: float = 0.0

    def sent(self, dts: int | None) -> None:
        """A packet goes to the decoder."""
        if dts is None or not self.chunks:
            return
        if self._first is None:
            self._first = dts
        elif self._delay is None:  # writers fill the decoder's delay with empty chunks after the first
            self._delay = max(0.0, dts - self._first - self.period)
        heappush(self._open, dts - (self._delay or 0.0))

    def lost(self, dts: int | None) -> None:
        """The packet that was sent gives no frame."""
        if dts is not None and (count := dts - (self._delay or 0.0)) in self._open:
            self._open.remove(count)
            heapify(self._open)

    def ticks(self, pts: int | None) -> float:
        """When the frame that came out appears."""
        if self._open:
            now = heappop(self._open)
        elif pts is None or self.chunks:
            now = 0.0 if self._before is None else self._before + self.period
        else:
            now = float(pts)
        step = 0.0 if self._before is None else now - self._before
        if step < -BACK_SECONDS * self.second or (self.joins and step > AHEAD_SECONDS * self.second):
            self._offset += self.period - step
        self._before = now
        return now

    def seconds(self, ticks: float) -> float:
        """The same in seconds, with the jumps closed."""
        return (ticks + self._offset) / self.second


def animation_delay(milliseconds: float) -> float:
    """Seconds for which browsers show a frame of an animation that asks for so many milliseconds."""
    seconds = milliseconds / 1000
    return seconds if seconds > SHORTEST_SECONDS else DEFAULT_FRAME_SECONDS


def frame_times(seconds: list[float]) -> tuple[Tensor, float]:
    """The times of frames in the order of showing, from 0 and rising (float64 [F]), and their mean rate.

    Decoders give frames in the order in which they are shown: where the times are not, the times are out of order.
    Frames of one instant share the time to the next.
    """
    instants, runs = torch.tensor(seconds, dtype=torch.float64).sort().values.unique_consecutive(return_counts=True)
    steps = instants.diff()
    last = steps.median()[None] if len(steps) else torch.tensor([DEFAULT_FRAME_SECONDS], dtype=torch.float64)
    shares = torch.cat([steps, last]) / runs
    within = torch.cat([torch.arange(int(run)) for run in runs])
    times = (instants - instants[0]).repeat_interleave(runs) + within * shares.repeat_interleave(runs)
    return times, mean_rate(times)


def mean_rate(times: Tensor) -> float:
    """Frames a second of a clip whose frames appear at these seconds [F]."""
    return (len(times) - 1) / float(times[-1]) if len(times) > 1 else 1.0 / DEFAULT_FRAME_SECONDS


def thin_out(times: Tensor, frames: int, fps: float) -> FrameChoice:
    """All of a clip at `fps` frames a second, at least `frames`, given the seconds [F] at which its frames appear.

    Raises ValueError as `choose_frames` does.
    """
    own = mean_rate(times)
    whole = int(len(times) / own * min(fps, own) + 1e-6)
    return choose_frames(times, max(frames, whole), fps, start=0.0)


def choose_frames(
    times: Tensor,
    count: int,
    target_fps: float = 8.0,
    start: float | None = None,
    generator: torch.Generator | None = None,
) -> FrameChoice:
    """Which `count` frames of a clip to take, given the seconds [F] at which its frames appear.

    They are those on screen at `target_fps` instants a second, or at the clip's own rate where that is lower. They
    begin at the frame on screen at `start` seconds, else at a random one if there is a generator, else at the first;
    early enough for all to fit. A clip too short for that is taken whole, at a higher rate. A clip with fewer
    frames than asked repeats them evenly: it looks slower and keeps its direction, where playing it to and fro would
    teach the reversed motion, and holding the last frame stillness.
    Raises ValueError for a single frame where several are asked, and for a count or rate below what makes sense.
    """
    n = len(times)
    if count < 1 or not target_fps > 0 or n < 1:
        raise ValueError(f"Cannot choose {count} frames at {target_fps} frames a second from {n} frames.")
    if n == 1 and count > 1:
        raise ValueError(f"{count} frames were asked of a single one, which shows no motion; give a video.")
    times = times.double() - times[0]
    period = float(times[-1]) / (n - 1) if n > 1 else 1.0 / target_fps
    native, shown = 1.0 / period, n * period
    window = min(count / min(target_fps, native), shown)
    rate = count / window
    slack = float(times.diff().median()) / 4 if n > 1 else 0.0  # some containers round times to milliseconds
    starts = int(torch.searchsorted(times, shown - window + slack, right=True))
    first = 0
    if start is not None:
        on_screen = int(torch.searchsorted(times, start + slack, right=True)) - 1
        first = min(max(on_screen, 0), starts - 1)
    elif generator is not None:
        first = int(torch.randint(starts, (1,), generator=generator, device=generator.device))
    instants = times[first] + torch.arange(count, dtype=torch.float64) / rate
    indices = torch.searchsorted(times, instants + slack, right=True) - 1
    return FrameChoice(indices, rate, _choice_note(n, count, native, rate, target_fps))


def _choice_note(n: int, count: int, native: float, rate: float, target_fps: float) -> str:
    if n < count:
        return f"The clip has {n} frames where {count} were asked: they are repeated evenly, so it moves more slowly."
    if rate > target_fps * 1.01:
        return (
            f"The clip is too short for {count} frames at {target_fps:g} a second: "
            f"all of it is taken, at {rate:.3g} a second."
        )
    if native < target_fps * 0.99:
        return f"The clip has only {native:.3g} frames a second where {target_fps:g} were asked: they are taken as is."
    return ""
