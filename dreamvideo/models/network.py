"""What all video UNets share: how they are called, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..safety.sizes import check_divides
from .blocks import Block, TransformerBlock, Upsample
from .call import BoundAdapters, Call, Watch, fold_frames, sinusoid, unfold_frames
from .config import NetworkConfig, text_layers
from .threads import threads_for


class Adapters(Protocol):
    def network(self, unet: VideoUNet, timesteps: Tensor) -> VideoUNet:
        """Called once a forward with timesteps [B]: the UNet whose layers run, `unet` or one with other weights."""
        ...

    def bind(self, timesteps: Tensor, size: tuple[int, int]) -> BoundAdapters:
        """Called once a forward with timesteps [B] and the latent size (h, w)."""
        ...


class VideoUNet(nn.Module):
    """Predicts the noise in video latents.

    gradient_checkpointing: recomputes each layer in the backward pass instead of keeping its activations.
    """

    config: NetworkConfig
    time_embed: nn.Sequential
    input_blocks: nn.ModuleList
    middle_block: Block
    output_blocks: nn.ModuleList
    out: nn.Sequential
    gradient_checkpointing = False

    def _lay_out(
        self,
        first: list[nn.Module],
        stage: Callable[[int, int, bool], Block],
        down: Callable[[int], nn.Module],
        last: Callable[..., nn.Module],
        ops: Any,
        factory: dict[str, Any],
    ) -> None:
        """Make input_blocks, middle_block, output_blocks and out, each level's stages as the network has them.

        first: the first input block. stage: of (channels in, channels out, whether it attends). down: the layer behind
        a level on the way in. last: the class of the middle block's second residual block.
        """
        config = self.config
        levels = list(zip(config.channels, config.attention_levels, strict=True))
        self.input_blocks = nn.ModuleList([nn.ModuleList(first)])
        width, skips = config.dim, [config.dim]
        for level, (channels, attends) in enumerate(levels):
            for _ in range(config.res_blocks):
                self.input_blocks.append(stage(width, channels, attends))
                width = channels
                skips.append(width)
            if level < len(levels) - 1:
                self.input_blocks.append(down(width))
                skips.append(width)

        self.middle_block = stage(width, width, True)
        self.middle_block.append(last(config, width, width, ops, factory))

        self.output_blocks = nn.ModuleList()
        for level, (channels, attends) in reversed(list(enumerate(levels))):
            for _ in range(config.res_blocks + 1):
                block = stage(width + skips.pop(), channels, attends)
                self.output_blocks.append(block)
                width = channels
            if level > 0:
                block.append(Upsample(width, ops, factory))

        self.out = nn.Sequential(
            ops.GroupNorm(config.norm_groups, config.dim, **factory),
            nn.SiLU(),
            ops.Conv2d(config.dim, config.out_channels, 3, padding=1, **factory),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, which is what `x` should come in."""
        return next(self.time_embed.parameters()).dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        adapters: Adapters | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Noise in the latents x [B, C, F, h, w] at timesteps [B] (0..999), given text states context [B, T, D].

        One context row a video, or one for each of the L spatial transformers too, [B, L, T, D]; watch: see `Watch`.
        Returns [B, C, F, h, w] in x's dtype. Raises ValueError for shapes that do not fit.
        """
        self._check(x, timesteps, context)
        with threads_for(self, x.device):
            return self._predict(x, timesteps, context, adapters, watch)

    def _predict(
        self, x: Tensor, timesteps: Tensor, context: Tensor, adapters: Adapters | None, watch: Watch | None
    ) -> Tensor:
        timesteps = timesteps.to(x.device)
        network = self if adapters is None else adapters.network(self, timesteps)
        bound = None if adapters is None else adapters.bind(timesteps, size=(x.shape[3], x.shape[4]))
        call = Call(
            frames=x.shape[2],
            embedding=network.time_embed(sinusoid(timesteps, self.config.dim).to(x.dtype)),  # [B, E]
            context=context.to(x),
            adapters=bound,
            checkpointing=self.gradient_checkpointing and torch.is_grad_enabled(),
            watch=watch,
            norm_across_frames=self.config.norm_across_frames or (bound is not None and bound.norm_across_frames),
        )
        return unfold_frames(network.path(fold_frames(x), call), call.frames)

    def path(self, x: Tensor, call: Call) -> Tensor:
        """The way of the data, frames folded into the batch: [B*F, C, h, w] -> [B*F, C, h, w]."""
        raise NotImplementedError

    def _check(self, x: Tensor, timesteps: Tensor, context: Tensor) -> None:
        config, stride = self.config, self.config.stride
        if x.ndim != 5 or x.shape[1] != config.in_channels or 0 in x.shape:
            raise ValueError(
                f"The UNet takes latents of shape [B, {config.in_channels}, F, h, w], got {list(x.shape)}."
            )
        batch, _, frames, height, width = x.shape
        check_divides("A latent", width, height, stride, "cells")
        check_frames(config, frames)
        if timesteps.shape != (batch,):
            raise ValueError(f"The UNet takes one timestep a video, [{batch}], got {list(timesteps.shape)}.")
        layers = len(text_layers(config))
        if context.ndim == 4 and context.shape[1] != layers:
            raise ValueError(
                f"The text has states for {context.shape[1]} layers and this UNet has {layers} that read it: "
                "its word was learned on another base."
            )
        if context.ndim not in (3, 4) or context.shape[0] != batch or context.shape[-1] != config.context_dim:
            raise ValueError(
                f"The UNet takes one text state a video, [{batch}, T, {config.context_dim}], got {list(context.shape)}."
            )


def check_frames(config: NetworkConfig, frames: int) -> None:
    """Raise ValueError for a video that is longer than a network has positions for."""
    most = config.most_frames
    if most is not None and frames > most:
        raise ValueError(
            f"This motion module has positions for {most} frames and the video has {frames}: ask for {most} or fewer, "
            "or take a motion module with more (AnimateDiff v2 and v3 have 32)."
        )


def close_residuals(layers: list[nn.Module]) -> None:
    """A new network starts with every residual branch, and its output, at zero: these are their last layers."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def number_text_layers(unet: VideoUNet) -> None:
    """Tell each spatial transformer its number among those that read the text."""
    for layer, site in enumerate(text_layers(unet.config)):
        cast(TransformerBlock, unet.get_submodule(f"{site}.transformer_blocks.0")).layer = layer
