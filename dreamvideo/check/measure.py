"""Peak memory of a piece of work, and numbers as people read them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from ..devices import GIB

RESET_PEAK = "5"  # what Linux takes as "the peak begins again here"


def forget_peak(device: torch.device) -> None:
    """What was held before and is free again does not count; where nothing resets the peak, it does."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)


def peak(device: torch.device) -> str:
    """The most memory that was held since: of the card, on a CPU the whole process."""
    if device.type == "cuda":
        return f"{gib(torch.cuda.max_memory_allocated(device))} on {device}"
    if device.type == "mps":
        return f"{gib(torch.mps.driver_allocated_memory())} held on mps, which tells no peak"
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return f"{gib(int(line.split()[1]) * 1024)} resident"
    return "this system tells none"


def gib(amount: float | None) -> str:
    return "unknown" if amount is None else f"{amount / GIB:.2f} GiB"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def pace(laps: list[float], noun: str) -> str:
    """Median speed without the first lap, which also loads kernels."""
    rest = sorted(laps[1:] or laps)
    median = rest[len(rest) // 2]
    return f"{1 / median:.3g} {noun}s/s ({len(laps)} {noun}s, the first took {laps[0]:.2f} s)"
