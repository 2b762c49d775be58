"""The toy world's motions: where a subject is in each frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FRAMES = 8

MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "jumping",
    "standing still",
)
WANDERING = "wandering"  # what captions call a motion that has no name
HELD_OUT_MOTIONS = ("circling", "zigzagging", "swinging", "bouncing", "spinning", "shaking")


@dataclass(frozen=True)
class Path:
    """Where a subject is in each frame.

    x, y in 64ths of the picture from the middle, scale (1 = its own size), angle in radians.
    """

    x: Tensor  # [F]
    y: Tensor  # [F]
    scale: Tensor  # [F]
    angle: Tensor  # [F]


def path_of(motion: str, frames: int = FRAMES, wander: int = 0) -> Path:
    """The path of a named motion over `frames` frames; wander: which of the nameless ways. ValueError for no motion."""
    if motion == WANDERING:
        return _wandering(frames, wander)
    s = torch.linspace(0, 1, frames)  # [F] time from 0 to 1
    rest, same = torch.zeros(frames), torch.ones(frames)
    sweep = 24 * (s - 0.5)
    turn = 2 * math.pi * torch.arange(frames) / frames
    hop = 4 * s * (1 - s)
    paths = {
        "moving left": (-sweep, rest, same),
        "moving right": (sweep, rest, same),
        "moving up": (rest, -sweep, same),
        "moving down": (rest, sweep, same),
        "growing": (rest, rest, 0.6 + 0.65 * s),
        "shrinking": (rest, rest, 1.25 - 0.65 * s),
        "jumping": (rest, 9 - 19 * hop, same),
        "standing still": (rest, rest, same),
        "circling": (12 * torch.sin(turn), -12 * torch.cos(turn), same),
        "zigzagging": (sweep, 11 * torch.sign(torch.sin(3.5 * math.pi * s + 0.3)), same),
        "swinging": (12 * torch.cos(turn), 10 * torch.cos(turn) ** 2 - 5, same),
        "bouncing": (sweep, 9 - 20 * torch.sin(2 * math.pi * s).abs(), same),
        "spinning": (rest, rest, same),  # half a turn
        "shaking": (7 * (-1.0) ** torch.arange(frames), rest, same),
    }
    if motion not in paths:
        raise ValueError(f"There is no motion '{motion}' in the toy world; it knows {', '.join(paths)}.")
    x, y, scale = paths[motion]
    return Path(x, y, scale, math.pi * s if motion == "spinning" else rest)


def _wandering(frames: int, seed: int) -> Path:
    """A way of three waves, slow or quick, at times with a change of size or a turn."""
    generator = torch.Generator().manual_seed(seed)
    speed = 0.3 + 3.2 * torch.rand(4, 3, generator=generator) ** 2  # waves in the whole clip
    start = 2 * math.pi * torch.rand(4, 3, generator=generator)
    weight = torch.rand(4, 3, generator=generator)
    time = torch.arange(frames) / frames
    waves = (weight[..., None] * torch.cos(start[..., None] + 2 * math.pi * speed[..., None] * time)).sum(1)  # [4, F]
    waves = waves - (waves.amax(1, keepdim=True) + waves.amin(1, keepdim=True)) / 2
    reach = torch.rand(4, generator=generator)
    x, y, scale, angle = waves / waves.abs().amax(1, keepdim=True).clamp(min=1e-3)
    grows, turns = (torch.rand(2, generator=generator) < 0.3).tolist()
    return Path(
        x * (3 + 10 * reach[0]),
        y * (3 + 10 * reach[1]),
        1 + 0.3 * reach[2] * scale if grows else torch.ones(frames),
        2 * reach[3] * angle if turns else torch.zeros(frames),
    )
