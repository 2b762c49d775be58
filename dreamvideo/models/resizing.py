"""Area averaging that runs on every device: pooling to a size that does not divide is missing on mps."""

from __future__ import annotations

import torch
from torch import Tensor


def area_average(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [..., H, W], floating, at another size (h, w): [..., h, w], each cell the mean of the pixels it touches.

    The same, to rounding, as `F.interpolate(pictures, size, mode="area")`, by one matrix product a side.
    """
    rows, columns = (
        _shares(before, after).to(pictures) for before, after in zip(pictures.shape[-2:], size, strict=True)
    )
    return rows @ (pictures @ columns.T)  # [h, H] @ ([..., H, W] @ [W, w])


def _shares(before: int, after: int) -> Tensor:
    """[after, before]: how much of each pixel of a line goes into each cell, a cell's shares adding up to 1."""
    cells, pixels = torch.arange(after), torch.arange(before)
    first = cells * before // after
    end = -(-(cells + 1) * before // after)
    touched = (pixels >= first[:, None]) & (pixels < end[:, None])
    return touched / (end - first)[:, None]
