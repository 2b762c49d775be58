"""Regions that are drawn apart: for a part of the trajectory each as a picture of its own.

Where a base draws one thing whatever its regions read, their texts alone do not make it two. Up to a part of the
trajectory the network sees of a region only the box around it (Bar-Tal et al., MultiDiffusion, arXiv 2302.08113, do so
to the end), and from there on all of the video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .regions import Region, mask_at
from .resizing import area_average
from .stack import LAST_TIMESTEP, AdapterStack, StackEntry

Box = tuple[slice, slice]  # rows and columns of latents


@dataclass(frozen=True, eq=False)
class Part:
    """A region that is drawn apart.

    weight: its share of each cell, [1, 1, F, h, w]; stack: what acts in its box.
    """

    box: Box
    weight: Tensor
    stack: AdapterStack


def predict_parts(
    predict: Callable[[Tensor, Tensor, Tensor, AdapterStack | None], Tensor],
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    stack: AdapterStack | None,
    stride: int,
) -> Tensor:
    """What `predict`, a UNet, makes of latents x [B, C, F, h, w], of those regions that are drawn apart each by itself.

    Boxes are widened to multiples of the UNet's `stride`. Regions share where they overlap, and what none covers is
    predicted with the whole video.
    """
    parts = parts_of(stack, timesteps, x, stride)
    if stack is None or not parts:
        return predict(x, timesteps, context, stack)
    rest = 1 - torch.stack([part.weight for part in parts]).sum(0)  # [1, 1, F, h, w]
    noise = torch.zeros_like(x)
    if rest.max() > 1e-6:
        noise = rest.to(x) * predict(x, timesteps, context, stack)
    for part in parts:
        inside = (..., *part.box)
        seen = predict(x[inside].contiguous(), timesteps, context, part.stack)
        noise[inside] += part.weight[inside].to(x) * seen
    return noise


def parts_of(stack: AdapterStack | None, timesteps: Tensor, x: Tensor, stride: int) -> list[Part]:
    """The regions that are drawn apart at these timesteps, of latents x [B, C, F, h, w]."""
    if stack is None or all(region.apart == 0 for region in stack.regions):
        return []
    position = float(1 - timesteps.max() / LAST_TIMESTEP)
    frames, size = x.shape[2], (x.shape[3], x.shape[4])
    here = [region.mask.to(x.device) for region in stack.regions]
    masks = [mask_at(mask, frames, size, "b f h w").expand(-1, frames, -1, -1) for mask in here]  # [1, F, h, w] each
    total = torch.stack(masks).sum(0).clamp(min=1)
    found = []
    for region, mask in zip(stack.regions, masks, strict=True):
        if position < region.apart and mask.any():
            box = _around(mask.amax((0, 1)), stride)
            found.append(Part(box, (mask / total)[:, None], _within(stack, region, box, size)))
    return found


def _around(mask: Tensor, stride: int) -> Box:
    """The box of what a mask [h, w] covers, at multiples of the stride."""
    covered = (mask > 0).nonzero()  # [N, 2]
    first = (covered.amin(0) // stride * stride).tolist()
    end = ((covered.amax(0) // stride + 1) * stride).tolist()
    return slice(first[0], end[0]), slice(first[1], end[1])


def _within(stack: AdapterStack, region: Region, box: Box, size: tuple[int, int]) -> AdapterStack:
    """The stack of a box in which all reads the region's text."""
    entries = [cut for entry in stack.entries if (cut := _cut(entry, box, size)) is not None]
    whole = replace(region, mask=torch.ones(1, 1, device=region.mask.device))
    return stack.within(entries, [whole])


def _cut(entry: StackEntry, box: Box, size: tuple[int, int]) -> StackEntry | None:
    """An entry as it acts in a box, None where it does not."""
    if entry.mask is None:
        return entry
    mask = area_average(entry.mask.float(), size)[(..., *box)]
    return replace(entry, mask=mask) if mask.any() else None
