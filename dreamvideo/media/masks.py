"""Masks of subjects, and the crops of photographs that follow them. The command line and the nodes ask here alike.

Masks are 0 or 1, [1, H, W], one on the subject. `name` is what messages call one: a path, "of photograph 2".
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# An alpha channel that varies less than this (of 255) was saved by a program that always saves one.
VARYING_ALPHA = 16


def picture_mask(picture: Image.Image) -> Tensor:
    """What a picture of 8 bits marks, [1, H, W]: white, or what is opaque where its opacity varies."""
    alpha = np.asarray(picture.getchannel("A")) if picture.mode in ("LA", "RGBA") else np.zeros(1, np.uint8)
    opaque = int(alpha.max()) - int(alpha.min()) < VARYING_ALPHA
    values = np.asarray(picture.convert(picture.mode.removesuffix("A")).convert("L")) if opaque else alpha
    levels = np.unique(values)
    # Label masks hold 0 and 1, or a dark palette colour: two levels are a mask however dark the brighter one is.
    threshold = levels[-1] / 2 if len(levels) == 2 else 127
    return torch.from_numpy((values > threshold).astype(np.float32))[None]


def fit_mask(mask: Tensor, size: tuple[int, int], name: object) -> Tensor:
    """The mask at the (height, width) of its photograph, whose shape it must have.

    Raises ValueError for a mask of another shape, and for one that is all black.
    """
    if not mask.any():
        raise ValueError(f"The mask {name} is all black; paint the subject white.")
    if mask.shape[-2:] == size:
        return mask
    check_mask_shape(mask, size, name, "photograph")
    return F.interpolate(mask[None], size=size, mode="nearest-exact")[0]


def check_mask_shape(mask: Tensor, size: tuple[int, int], name: object, of: str) -> None:
    """Raise ValueError for a mask [..., H, W] of another shape than what it is of, "photograph" or "clip"."""
    (height, width), (mask_height, mask_width) = size, mask.shape[-2:]
    if abs(mask_width * height - mask_height * width) > max(height, mask_height, width, mask_width):
        raise ValueError(
            f"The mask {name} is {mask_width}x{mask_height} pixels, its {of} {width}x{height}: "
            f"make the mask the size of the {of}."
        )


def crop_subject(image: Tensor, mask: Tensor, size: tuple[int, int], name: object) -> tuple[Tensor, Tensor, float]:
    """A photograph [3, H, W] and its mask at a size (height, width), and the part of the subject outside, 0 to 1.

    The crop is the centre where that holds all of the subject, else the one that holds most of it.
    Raises ValueError when nothing of the mask is left at that size.
    """
    rows, columns = covered(image.shape[-2:], *size)
    at = _start(mask[0].sum(dim=1), rows), _start(mask[0].sum(dim=0), columns)
    inside = mask[..., at[0] : at[0] + rows, at[1] : at[1] + columns].sum() / mask.sum()
    small = (cover_crop(mask, *size, at=at) > 0.5).float()
    if not small.any():
        raise ValueError(
            f"The mask {name} covers too little to be seen at {size[1]}x{size[0]}; "
            "crop the photograph closer to the subject, or leave the mask away."
        )
    return cover_crop(image, *size, at=at), small, 1.0 - float(inside)


def crop_note(lost: float, size: tuple[int, int]) -> str:
    """What to tell where a part of the subject, 0 to 1, lies outside the crop; empty for next to nothing."""
    if lost < 0.005:
        return ""
    return f"{lost:.0%} of the subject lies outside the crop to {size[1]}x{size[0]}."


def _start(weights: Tensor, length: int) -> int:
    """Where on a line of these weights [L] a stretch of this length begins best."""
    centre = (len(weights) - length) // 2
    sums = torch.cat([weights.new_zeros(1), weights]).double().cumsum(0)
    held = sums[length:] - sums[: len(sums) - length]  # [L - length + 1]
    if held[centre] == sums[-1]:
        return centre
    subject = weights.nonzero()
    wanted = (int(subject[0]) + int(subject[-1]) + 1 - length) / 2
    best = (held >= held.max() - 1e-6).nonzero()[:, 0]
    return int(best[(best - wanted).abs().argmin()])


def covered(full: tuple[int, int] | torch.Size, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a picture (height, width) that are left when it is scaled to cover height x width."""
    if height < 1 or width < 1:
        raise ValueError(f"Pictures cannot be cropped to {width}x{height} pixels.")
    scale = max(height / full[0], width / full[1])
    return min(full[0], max(1, round(height / scale))), min(full[1], max(1, round(width / scale)))


def cover_crop(images: Tensor, height: int, width: int, at: tuple[int, int] | None = None) -> Tensor:
    """The centre of images [..., C, H, W] at the wanted shape, scaled to height x width with antialiasing.

    The same region as scaling until the size is covered and cropping the centre, for any shape of picture.
    at: the region's first row and column instead of the centre's. Keeps the dtype, uint8 or floating.
    """
    full_height, full_width = images.shape[-2:]
    rows, columns = covered((full_height, full_width), height, width)
    top, left = at or ((full_height - rows) // 2, (full_width - columns) // 2)
    images = images[..., top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return images.contiguous()
    flat = images.reshape(-1, *images.shape[-3:])  # [N, C, rows, columns]
    flat = F.interpolate(flat, size=(height, width), mode="bilinear", antialias=True)
    return flat.reshape(*images.shape[:-2], height, width)


def mask_to_latent(mask: Tensor, height: int, width: int) -> Tensor:
    """Masks [..., 1, H, W] at latent resolution, [..., 1, height, width], nearest, zeros and ones.

    Raises ValueError when nothing of a mask is left there: the masked loss would then be zero and teach nothing.
    """
    flat = mask.reshape(-1, *mask.shape[-3:]).float()
    small = (F.interpolate(flat, size=(height, width), mode="nearest-exact") > 0.5).float()
    if not small.flatten(1).any(dim=1).all():
        raise ValueError(
            f"A mask covers too little to be seen at the latents' {width}x{height}; "
            "crop the photograph closer to the subject, or train without masks."
        )
    return small.reshape(*mask.shape[:-2], height, width)


def uncovered(cover: Tensor, height: int, width: int, name: object) -> Tensor:
    """What a clip's mask [N, H, W] leaves to be learned from, at latent resolution: [1, N, height, width] of 0 and 1.

    A cell that the mask touches is left out whole. Raises ValueError when nothing is left.
    """
    covered = F.adaptive_max_pool2d(cover.float()[None], (height, width))  # [1, N, height, width]
    if covered.all():
        raise ValueError(f"The mask {name} covers all of its clip; leave black what is to be learned from.")
    return 1.0 - covered
