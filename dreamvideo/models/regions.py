"""Parts of a video that read prompts of their own, and masks of parts of a video at the UNet's levels.

Several subjects in one prompt bleed into each other: every place reads every word (Wei et al. 2024, section 5). With
regions a place reads the prompt of its region; the others' words do not reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from .resizing import area_average


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the video that reads another text.

    context: its text states, [1, T, D], or [1, L, T, D] with one for each layer that reads them. mask: where, [H, W] or
    [F, H, W] in 0..1 at any resolution; where several regions overlap they share, and where there is none the video's
    own prompt is read. apart: up to this part of the sampling trajectory, 0 its beginning and 1 its end, the region is
    drawn by itself, see `apart.py`.
    """

    context: Tensor
    mask: Tensor
    apart: float = 0.0

    def __post_init__(self) -> None:
        check_mask("A region", self.mask)
        check_apart(self.apart)
        if self.context.ndim not in (3, 4) or len(self.context) != 1:
            raise ValueError(f"A region's text states are [1, T, D], not {list(self.context.shape)}.")

    def to(self, device: torch.device | str | None) -> Region:
        return replace(self, context=self.context.to(device=device), mask=self.mask.to(device=device))


class BoundRegions:
    """Regions in one forward; `read` is what a block with cross-attention calls.

    shares: how much of its regions each sample heeds, [B] in 0..1; the half without the prompt heeds none.
    """

    def __init__(self, regions: Sequence[Region], shares: Tensor) -> None:
        self.regions = regions
        self.shares = shares
        self.weights: dict[tuple[int, int], Tensor] = {}  # of all regions at each level

    def read(self, attend: Callable[[Tensor], Tensor], text: Tensor, size: tuple[int, int]) -> Tensor:
        """What cross-attention reads [B, F, N, C], given what it read in the video's own prompt.

        attend: text states [B, T, D] -> what all places read in them.
        """
        weights = self._weights(text, size)  # [R, B, F or 1, N, 1]
        mixed = text * (1 - weights.sum(0))
        for region, weight in zip(self.regions, weights, strict=True):
            mixed = mixed + weight * attend(region.context.to(text).expand(len(text), *region.context.shape[1:]))
        return mixed

    def _weights(self, text: Tensor, size: tuple[int, int]) -> Tensor:
        if size not in self.weights:
            frames = text.shape[1]
            masks = [mask_at(region.mask.to(text.device), frames, size, "b f (h w) 1") for region in self.regions]
            stacked = torch.stack([mask.expand(-1, frames, -1, -1) for mask in masks])  # [R, 1, F, N, 1]
            stacked = stacked / stacked.sum(0).clamp(min=1)
            self.weights[size] = (stacked * self.shares.to(stacked)[:, None, None, None]).to(text.dtype)
        return self.weights[size]


def check_apart(apart: float) -> None:
    """Raise ValueError unless it is a part of the trajectory."""
    if not 0 <= apart <= 1:
        raise ValueError(f"A region is drawn apart up to a part of the steps in 0..1, not {apart:g}.")


def check_mask(what: str, mask: Tensor) -> None:
    """Raise ValueError unless a mask is [H, W] or [F, H, W] in 0..1."""
    if mask.ndim not in (2, 3) or not mask.numel():
        raise ValueError(f"{what}'s mask is [H, W] or [F, H, W], not {list(mask.shape)}.")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"{what}'s mask holds values in 0..1, not {float(mask.min()):g}..{float(mask.max()):g}.")


def mask_at(mask: Tensor, frames: int, size: tuple[int, int], layout: str) -> Tensor:
    """A mask [H, W] or [F, H, W] averaged down to one level, laid out as what it weighs: einops's names of
    "b f h w", F or 1 frames.

    Raises ValueError for a mask of another number of frames.
    """
    mask = mask.float().reshape(1, -1, *mask.shape[-2:])  # [1, F or 1, H, W]
    if mask.shape[1] not in (1, frames):
        raise ValueError(f"A mask has {mask.shape[1]} frames, but the video has {frames}.")
    return rearrange(area_average(mask, size), f"b f h w -> {layout}")


def part_of_video(
    frames: int,
    across: tuple[float, float] = (0.0, 1.0),
    down: tuple[float, float] = (0.0, 1.0),
    time: tuple[float, float] = (0.0, 1.0),
    size: tuple[int, int] = (64, 64),
) -> Tensor:
    """The mask of a box: parts of the width, of the height and of the frames, each (from, to) in 0..1; [F, H, W]."""
    sides = [_between(length, *part) for length, part in ((frames, time), (size[0], down), (size[1], across))]
    return sides[0][:, None, None] * sides[1][:, None] * sides[2]


def _between(length: int, start: float, end: float) -> Tensor:
    """[length]: how much of each of the equal steps from 0 to 1 lies between start and end."""
    if not 0 <= start < end <= 1:
        raise ValueError(f"A part goes from a start to a later end within 0..1, not {start:g} to {end:g}.")
    edges = torch.linspace(0, 1, length + 1)
    return ((edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)) * length).clamp(0, 1)
