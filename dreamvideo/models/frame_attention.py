"""What Tune-A-Video learns of one clip (Wu et al., arXiv 2212.11565), beside an image UNet that stays as it is.

Self-attention of the spatial transformers takes its keys and values from the first and the previous frame instead of
from its own; behind every block stands a new attention among the frames at one position, which starts as nothing; the
queries of self- and cross-attention are trained along; and the residual blocks' norms take their statistics over all
frames, as in the authors' `resnet.py`. The first and the last are how a network reads (`call.BoundAdapters`), the
second is a residual, the third a difference of weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import NetworkConfig, transformer_sites
from .deltas import DeltaConfig, WeightDelta, attach
from .image_config import ImageUNetConfig

TEMPORAL = "attn_temp"  # what a block's attention over time is called, as in the authors' files


@dataclass(frozen=True)
class FrameAttentionConfig(DeltaConfig):
    """Tune-A-Video's: the queries, and attention over time. There is nothing to choose."""

    weights: tuple[str, ...] = ("queries",)
    rank: int | None = None

    kind: ClassVar[str] = "tune_a_video"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights != ("queries",) or self.rank is not None:
            raise ValueError("Tune-A-Video trains the queries, whole; leave weights and rank out.")


class TemporalAttention(nn.Module):
    """Attention among the frames at one position, without positions, behind a norm that is not trained."""

    def __init__(self, width: int, heads: int, factory: dict) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False, **factory) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width, **factory))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """nn.Linear's default distribution, drawn in float32 where the generator lives; zeros for the output."""
        for linear in (self.to_q, self.to_k, self.to_v):
            bound = 1 / math.sqrt(linear.in_features)
            drawn = torch.empty(linear.weight.shape, device=generator.device)
            linear.weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
        for parameter in self.to_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, F, N, C], a block's stream -> the residual of the same shape, computed where and as x is."""
        h = F.layer_norm(x, x.shape[-1:]).transpose(1, 2)  # [B, N, F, C]
        q, k, v = (
            F.linear(h, layer.weight.to(h)).unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(0, 1)
            for layer in (self.to_q, self.to_k, self.to_v)
        )  # [B*N, heads, F, C / heads]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).view_as(h)
        (out,) = self.to_out
        assert isinstance(out, nn.Linear)
        return F.linear(h, out.weight.to(h), out.bias.to(h)).transpose(1, 2)


class FrameAttention(WeightDelta):
    """Differences of the queries, and the attention over time of every spatial transformer.

    State-dict keys are those of the weights, and `input_blocks.1.1.transformer_blocks.0.attn_temp.to_q.weight`.
    Raises ValueError for a UNet that is no image model.
    """

    def __init__(
        self,
        config: FrameAttentionConfig,
        unet_config: NetworkConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(unet_config, ImageUNetConfig):
            raise ValueError(
                "Tune-A-Video makes a video model of an image model, and this base is a video model already: take a "
                "Stable Diffusion 1.5 checkpoint as the base, or another method."
            )
        generator = generator or torch.Generator().manual_seed(0)
        super().__init__(config, unet_config, device, dtype, generator)
        factory = {"device": torch.get_default_device() if device is None else device, "dtype": dtype}
        for site in transformer_sites(unet_config):
            if site.kind == "spatial":
                attention = TemporalAttention(site.width, unet_config.heads, factory)
                if not attention.to_q.weight.is_meta:
                    attention.initialise(generator)
                attach(self, f"{site.name}.transformer_blocks.0.{TEMPORAL}", attention)

    def behind(self, site: str) -> TemporalAttention | None:
        """The attention over time behind a sublayer such as "input_blocks.1.1.transformer_blocks.0.ff", if any."""
        block, _, sublayer = site.rpartition(".")
        if sublayer != "ff":
            return None
        try:
            found = self.get_submodule(f"{block}.{TEMPORAL}")
        except AttributeError:  # a motion module's block
            return None
        assert isinstance(found, TemporalAttention)
        return found


def first_and_previous(x: Tensor) -> Tensor:
    """What a frame of x [B, F, N, C] attends to: the first frame's tokens and the previous one's [B, F, 2N, C]."""
    first = x[:, :1].expand_as(x)
    previous = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    return torch.cat([first, previous], dim=2)
