"""How a command line says where and when an adapter acts, and which part of a video reads a prompt of its own.

FILE[@STRENGTH][[KEY=VALUE,...]]   dance.safetensors@0.8[area=left,frames=0..0.5,steps=0..0.6,ramp=1..0,depth=0..1]
                                   my-dog.safetensors[guided=0.6]
AREA[[KEY=VALUE,...]]: PROMPT      left[frames=0..0.5,apart=0.5]: a <my-dog> is running
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..customizing import RegionPrompt
from ..media.clips import read_clip
from ..media.folders import VIDEO_SUFFIXES
from ..media.photographs import load_mask
from ..models.regions import part_of_video
from ..safety.texts import quoted
from ..sampling import SamplingSettings

HALVES = {
    "all": {},
    "left": {"across": (0.0, 0.5)},
    "right": {"across": (0.5, 1.0)},
    "top": {"down": (0.0, 0.5)},
    "bottom": {"down": (0.5, 1.0)},
}
RANGES = {"steps": "window", "ramp": "ramp", "depth": "depth", "frames": "frames"}  # what StackEntry calls them
KEYS = ("area", *RANGES, "guided")  # of an adapter
REGION_KEYS = ("frames", "apart")


@dataclass(frozen=True)
class Given:
    """An adapter as the command line names it: its file, how strong it is, and the text of what limits it."""

    path: Path
    strength: float = 1.0
    limits: Mapping[str, str] = field(default_factory=dict)


def given_adapter(text: str) -> Given:
    """Read FILE[@STRENGTH][[KEY=VALUE,...]]; a file's own name may hold an @ and brackets.

    Raises ValueError for a key that there is not.
    """
    if Path(text).exists():
        return Given(Path(text))
    text, limits = _limits(text)
    path, at, strength = text.rpartition("@")
    if not at or Path(text).exists():
        return Given(Path(text), limits=limits)
    try:
        return Given(Path(path), float(strength), limits)
    except ValueError:
        return Given(Path(text), limits=limits)


def limits_of(given: Given, settings: SamplingSettings) -> dict[str, Any]:
    """Fields of a StackEntry: mask, window, ramp, depth, guided_from. Raises ValueError for what cannot be read."""
    found: dict[str, Any] = {}
    for key, value in given.limits.items():
        if key in ("steps", "ramp", "depth"):
            found[RANGES[key]] = _range(key, value)
    if "guided" in given.limits:
        found["guided_from"] = _part("guided", given.limits["guided"])
    if "area" in given.limits or "frames" in given.limits:
        found["mask"] = _mask(given.limits, settings)
    return found


def region_prompt(text: str, settings: SamplingSettings) -> RegionPrompt:
    """Read AREA[[KEY=VALUE,...]]: PROMPT. Raises ValueError for what is none."""
    area, colon, prompt = text.partition(": ")
    if not colon or not area.strip() or not prompt.strip():
        raise ValueError(
            f"A region is written AREA: PROMPT, such as 'left: a <my-dog> is running', and not {quoted(text)}."
        )
    area, limits = _limits(area.strip(), REGION_KEYS)
    apart = _part("apart", limits.get("apart", "0"))
    return RegionPrompt(prompt.strip(), _mask({"area": area, **limits}, settings), apart)


def _limits(text: str, keys: Sequence[str] = KEYS) -> tuple[str, dict[str, str]]:
    """What stands before the brackets at the end, and what is in them."""
    found = re.fullmatch(r"(.*)\[([^\[\]]*=[^\[\]]*)\]", text)
    if found is None:
        return text, {}
    limits = {}
    for part in found[2].split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in keys or not value:
            raise ValueError(f"In brackets stand {', '.join(f'{name}=' for name in keys)}, not {quoted(part)}.")
        limits[key] = value
    return found[1], limits


def _mask(limits: Mapping[str, str], settings: SamplingSettings) -> Tensor:
    """Where and in which frames, [F, H, W]."""
    frames, size = settings.frames, (settings.height, settings.width)
    time = _range("frames", limits["frames"]) if "frames" in limits else (0.0, 1.0)
    area = limits.get("area", "all")
    if area in HALVES:
        return part_of_video(frames, time=time, size=size, **HALVES[area])
    return _painted(Path(area), frames) * part_of_video(frames, time=time, size=(1, 1))


def _painted(path: Path, frames: int) -> Tensor:
    """A mask from a file, [1, H, W], or from a video or a folder of pictures, [F, H, W], stretched to the length."""
    if not path.exists():
        raise ValueError(f"An area is {', '.join(HALVES)}, or a mask's file; there is no {quoted(str(path))}.")
    if path.suffix.lower() not in VIDEO_SUFFIXES and path.is_file():
        return load_mask(path)
    clip = read_clip(path)
    taken = torch.linspace(0, len(clip.times) - 1, frames).round().long()
    mask = (clip.pixels(taken).mean(1) > 0.5).float()  # [F, H, W]
    if not mask.any():
        raise ValueError(f"The mask {path} is all black; paint white where it shall act.")
    return mask


def _range(key: str, value: str) -> tuple[float, float]:
    first, dots, last = value.partition("..")
    try:
        return float(first), float(last if dots else first)
    except ValueError:
        raise ValueError(f"{key} is written FROM..TO, such as {key}=0..0.5, not {quoted(value)}.") from None


def _part(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{key} is a part of the steps, such as {key}=0.5, not {quoted(value)}.") from None
