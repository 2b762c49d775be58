"""Stable Diffusion 1.5's UNet with AnimateDiff's motion modules between its layers (Guo et al., arXiv 2307.04725).

The image part takes every frame by itself; a motion module behind each stage mixes frames, as in the authors'
`motion_module.py`. Names are those of the original files: the image part's of Stable Diffusion's checkpoints, the
motion modules' below `motion`. Without motion modules it is an image UNet that sees every frame alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import (
    Attention,
    AttentionFunction,
    Block,
    ConvolvedTransformer,
    Downsample,
    FeedForward,
    ResBlock,
    TransformerBlock,
)
from .call import Call, run
from .image_config import ImageUNetConfig
from .network import VideoUNet, close_residuals, number_text_layers


def frame_positions(frames: int, width: int, like: Tensor) -> Tensor:
    """What tells a frame by its number [frames, width], sines at even places, cosines at odd; in float32 at first."""
    steps = torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width)
    phase = torch.arange(frames, device=like.device)[:, None] * steps.exp()  # [frames, width / 2]
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1).to(like.dtype)


class MotionBlock(nn.Module):
    """Three pre-norm sublayers on x [B, N, F, C]: twice attention among the frames at a position, and a feed-forward.

    What the attentions read knows its frame's number; the stream itself does not.
    """

    site = ""  # its full module name; the UNet fills it in

    def __init__(self, width: int, heads: int, attention: AttentionFunction, ops, factory: dict) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            [Attention(width, heads, None, attention, ops, factory) for _ in range(2)]
        )
        self.norms = nn.ModuleList([ops.LayerNorm(width, **factory) for _ in range(2)])
        self.ff = FeedForward(width, ops, factory)
        self.ff_norm = ops.LayerNorm(width, **factory)

    def forward(self, x: Tensor, size: tuple[int, int], call: Call) -> Tensor:
        positions = frame_positions(call.frames, x.shape[-1], x)
        if call.adapters is not None:
            x = call.adapters.enter(self.site, x, size)
        for sublayer, attention, norm in zip(("attn1", "attn2"), self.attention_blocks, self.norms, strict=True):
            x = call.adapted(self.site, sublayer, x, attention(norm(x) + positions), size, temporal=True)
        return call.adapted(self.site, "ff", x, self.ff(self.ff_norm(x)), size, temporal=True)


class MotionTransformer(nn.Module):
    """Attention among the frames at one position, which know their number."""

    def __init__(
        self, config: ImageUNetConfig, channels: int, attention: AttentionFunction, ops, factory: dict
    ) -> None:
        super().__init__()
        self.norm = ops.GroupNorm(config.norm_groups, channels, eps=1e-6, **factory)
        self.proj_in = ops.Linear(channels, channels, **factory)
        self.transformer_blocks = nn.ModuleList([MotionBlock(channels, config.heads, attention, ops, factory)])
        self.proj_out = ops.Linear(channels, channels, **factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        height, width = x.shape[-2:]
        h = rearrange(self.norm(x), "(b f) c h w -> b (h w) f c", f=call.frames)  # the norm's statistics are a frame's
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, (height, width), call)
        return x + rearrange(self.proj_out(h), "b (h w) f c -> (b f) c h w", h=height)


class MotionModules(nn.Module):
    """All motion modules of a network, in levels as their files have them."""

    def __init__(self, config: ImageUNetConfig, attention: AttentionFunction, ops, factory: dict) -> None:
        super().__init__()

        def level(channels: int, count: int) -> nn.Module:
            modules = [
                nn.ModuleDict({"temporal_transformer": MotionTransformer(config, channels, attention, ops, factory)})
                for _ in range(count)
            ]
            return nn.ModuleDict({"motion_modules": nn.ModuleList(modules)})

        self.down_blocks = nn.ModuleList([level(channels, config.res_blocks) for channels in config.channels])
        if config.motion_middle:
            self.mid_block = level(config.channels[-1], 1)
        self.up_blocks = nn.ModuleList([level(each, config.res_blocks + 1) for each in reversed(config.channels)])

    def along(self, part: str) -> Iterator[MotionTransformer]:
        """Those of "down_blocks", "mid_block" or "up_blocks", in the order in which data meets them."""
        found = getattr(self, part, ())
        for level in [found] if part == "mid_block" and found else found:
            for module in level["motion_modules"]:
                yield module["temporal_transformer"]


class Stage(Block):
    """A residual block and, where there is one, a transformer; a motion module; and what comes behind these."""

    def forward(self, x: Tensor, call: Call, motion: MotionTransformer | None = None) -> Tensor:
        for layer in self.layers(motion):
            x = run(layer, x, call)
        return x

    def layers(self, motion: MotionTransformer | None) -> list[nn.Module]:
        layers = list(self)
        if motion is not None:
            behind = 1 + (len(layers) > 1 and isinstance(layers[1], ConvolvedTransformer))
            layers.insert(behind, motion)
        return layers


class ImageUNet(VideoUNet):
    """Stable Diffusion 1.5's UNet, alone or with AnimateDiff's motion modules.

    operations, attention: as of `unet.UNet`.
    """

    config: ImageUNetConfig

    def __init__(
        self,
        config: ImageUNetConfig,
        *,
        operations: Any = nn,
        attention: AttentionFunction = F.scaled_dot_product_attention,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        ops, factory = operations, {"device": device, "dtype": dtype}
        dim = config.dim

        def stage(channels_in: int, channels: int, attends: bool) -> Stage:
            block = Stage([ResBlock(config, channels_in, channels, ops, factory)])
            if attends:
                block.append(ConvolvedTransformer(config, channels, config.heads, attention, ops, factory))
            return block

        self.time_embed = nn.Sequential(
            ops.Linear(dim, config.embed_dim, **factory),
            nn.SiLU(),
            ops.Linear(config.embed_dim, config.embed_dim, **factory),
        )
        first_conv = ops.Conv2d(config.in_channels, dim, 3, padding=1, **factory)
        self._lay_out(
            [first_conv], stage, lambda width: Block([Downsample(width, ops, factory)]), ResBlock, ops, factory
        )
        self.motion = MotionModules(config, attention, ops, factory) if config.has_motion else None
        self._zero_residuals()
        for name, module in self.named_modules():
            if isinstance(module, TransformerBlock | MotionBlock):
                module.site = name
        number_text_layers(self)

    def still(self) -> ImageUNet:
        """The image model by itself, for pictures: the same weights without motion modules, and its own schedule."""
        if self.motion is None:
            return self
        copied = copy.copy(self)
        copied._modules = {**self._modules, "motion": None}
        copied.config = replace(self.config, motion_frames=None, motion_middle=False, norm_across_frames=False)
        return copied

    def _zero_residuals(self) -> None:
        layers: list[nn.Module] = [self.out[-1]]
        for module in self.modules():
            if isinstance(module, ResBlock):
                layers.append(module.out_layers[-1])
            elif isinstance(module, ConvolvedTransformer | MotionTransformer):
                layers.append(module.proj_out)
        close_residuals(layers)

    def path(self, x: Tensor, call: Call) -> Tensor:
        (first_conv,) = cast(nn.ModuleList, self.input_blocks[0])
        h = first_conv(x)  # [B*F, C, h, w]
        skips, motion = [h], self._motion("down_blocks")
        for block in self.input_blocks[1:]:
            h = block(h, call, next(motion)) if isinstance(block, Stage) else block(h, call)
            skips.append(h)
        h = self.middle_block(h, call, next(self._motion("mid_block")))
        motion = self._motion("up_blocks")
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), call, next(motion))
        return call.through(self.out, h)

    def _motion(self, part: str) -> Iterator[MotionTransformer | None]:
        """The motion modules of a part, one a stage; None, as often as asked, where there are none (more)."""
        if self.motion is not None:
            yield from self.motion.along(part)
        while True:
            yield None
