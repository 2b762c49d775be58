"""What an adapter over time may have beside its bottlenecks: a vector for every frame, residuals of convolutions.

The temporal transformers have no positions: only the temporal convolutions know the order of frames, and a transformer
and an adapter beside it learn of it as far as they have left it in the features. A vector a frame, added to the stream
that enters the transformer, tells both (the idea of Motion Inversion, Wang et al., arXiv 2403.20193, which learns an
embedding a frame for temporal attention); a residual of low rank at a temporal convolution (LoRA, Hu et al.,
arXiv 2106.09685, not merged) acts where the order is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrameVectors(nn.Module):
    """One learned vector for each frame at one temporal transformer: `weight` [frames, width], zero at first."""

    def __init__(self, frames: int, width: int, factory: dict) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(frames, width, **factory))

    def forward(self, frames: int) -> Tensor:
        """The vectors of a video of any length [frames, width]: first on first, last on last, linear between."""
        if frames == len(self.weight):
            return self.weight
        weight = self.weight.float().T[None]  # [1, width, frames]
        return F.interpolate(weight, size=frames, mode="linear", align_corners=True)[0].T.to(self.weight.dtype)


class ConvResidual(nn.Module):
    """up @ (down over time): what is added behind one temporal convolution, of low rank. `up` starts at zero.

    down [rank, channels, 3] takes three frames, padded with zeros, as the convolution beside it; up [channels, rank].
    """

    def __init__(self, channels: int, rank: int, factory: dict) -> None:
        super().__init__()
        rank = min(rank, channels)
        self.down = nn.Parameter(torch.empty(rank, channels, 3, **factory))
        self.up = nn.Parameter(torch.zeros(channels, rank, **factory))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """nn.Conv1d's default distribution for `down`, drawn in float32 where the generator lives."""
        bound = 1 / math.sqrt(self.down[0].numel())
        drawn = torch.empty(self.down.shape, device=generator.device)
        self.down.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, F, h, w], what the convolution takes -> the residual of the same shape, where and as x is."""
        down, up = self.down.to(x), self.up.to(x)
        positions = x.flatten(3)  # [B, C, F, h*w]
        few = F.conv2d(positions, down[..., None], padding=(1, 0))  # [B, rank, F, h*w]
        return F.conv2d(few, up[..., None, None]).unflatten(3, x.shape[3:])
