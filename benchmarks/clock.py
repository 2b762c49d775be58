"""Time and memory, measured so that a machine that gets slower or faster does not favour either side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Job = Callable[[], Any]


class Clock:
    """kind "wall": seconds passed; "cpu": seconds of this process's threads, for a machine that others use too."""

    def __init__(self, device: torch.device, kind: str) -> None:
        self.device = device
        self.now = time.process_time if kind == "cpu" else time.perf_counter

    def seconds(self, job: Job) -> float:
        self._wait()
        began = self.now()
        job()
        self._wait()
        return self.now() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def interleaved(jobs: Mapping[str, Job], rounds: int, clock: Clock) -> dict[str, float]:
    """Median seconds of each job. Every round runs every job once, beginning with another one; a first round warms up.

    A slow minute of the machine so falls on all of them.
    """
    names = list(jobs)
    for name in names:
        jobs[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(clock.seconds(jobs[name]))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def forget_peak(device: torch.device) -> None:
    """What was needed to make the models does not count; on the CPU there is no such reset, and it does."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: of the card, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):  # unlike getrusage's it is not inherited from the parent
            return int(line.split()[1]) * 1024
    raise ValueError("Peak memory is read from /proc/self/status, which this system does not have.")
