"""Figures 4 and 5: how time grows with frames and size, and which share of a matrix product's speed is reached."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from dreamvideo.models.unet import UNet

from .clock import interleaved
from .machine import matrix_product
from .setting import Row, Setting

FRAMES = (8, 16, 32, 64)
SIDES = (16, 32, 48, 64)  # of the latents: 128 to 512 pixels


def rows(setting: Setting) -> list[Row]:
    """Figure 4: exponents of time in frames, and in arithmetic at growing sizes."""
    shapes = {f"{frames} frames": (frames, setting.side) for frames in FRAMES}
    shapes |= {f"{8 * side} pixels": (16, side) for side in SIDES}
    seconds = interleaved(
        {name: forward(setting, *shape) for name, shape in shapes.items()}, setting.rounds, setting.clock
    )
    works = {name: flops(setting, *shape) for name, shape in shapes.items()}
    long, large = list(shapes)[: len(FRAMES)], list(shapes)[len(FRAMES) :]
    absolute = {f"{name}, s": taken for name, taken in seconds.items()}
    in_frames = exponent([float(frames) for frames in FRAMES], [seconds[name] for name in long])
    in_work = exponent([works[name] for name in large], [seconds[name] for name in large])
    return [
        Row(4, f"exponent of time in frames, {FRAMES[0]} to {FRAMES[-1]}", in_frames, "", "at most 1.1", absolute),
        Row(4, f"exponent of time in arithmetic, {8 * SIDES[0]} to {8 * SIDES[-1]} pixels", in_work, ""),
    ]


def fraction_rows(setting: Setting) -> list[Row]:
    """Figure 5: achieved FLOP/s of a forward over those of a large matrix product in the same run."""
    frames = setting.size.frames
    product, operations = matrix_product(setting.device, setting.dtype)
    jobs = {"matrix product": product, "forward": forward(setting, frames, setting.side)}
    works = {"matrix product": operations, "forward": flops(setting, frames, setting.side)}
    seconds = interleaved(jobs, setting.rounds, setting.clock)
    rates = {name: works[name] / seconds[name] for name in jobs}
    share = 100 * rates["forward"] / rates["matrix product"]
    absolute = {f"{name}, GFLOP/s": rate / 1e9 for name, rate in rates.items()}
    return [Row(5, "forward's share of a matrix product's speed", share, "%", "- / 45", absolute)]


def forward(setting: Setting, frames: int, side: int, unet: UNet | None = None) -> Callable[[], None]:
    x = setting.random(1, 4, frames, side, side).to(setting.dtype)
    timesteps = torch.tensor([500], device=setting.device)
    context = setting.random(1, 77, setting.size.unet.context_dim).to(setting.dtype)
    unet = unet or setting.unet

    @torch.no_grad()
    def run() -> None:
        unet(x, timesteps, context)

    return run


def flops(setting: Setting, frames: int, side: int) -> float:
    with FlopCounterMode(display=False) as counter:
        forward(setting, frames, side)()
    return float(counter.get_total_flops())


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x by least squares."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in logs) / sum((a - mean_x) ** 2 for a, _ in logs)
