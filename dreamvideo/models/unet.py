"""The ModelScope text-to-video UNet: a 2-D UNet whose every stage is followed by a module that mixes frames.

Frames are folded into the batch, [B*F, C, H, W]; temporal modules unfold them. Module names are the key names of the
original checkpoint (`temopral_conv` is spelt so there), so its state dict loads as it is. Adapters are an argument of
`forward`: the UNet offers them every sublayer of every transformer block and every temporal convolution, and
owns none of them.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..safety.sizes import check_divides
from .blocks import (
    AttentionFunction,
    Block,
    BoundAdapters,
    Call,
    Downsample,
    ResBlock,
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
    TransformerBlock,
    Upsample,
    Watch,
    fold_frames,
    run,
    sinusoid,
    unfold_frames,
)
from .config import UNetConfig, text_layers
from .threads import threads_for


class Adapters(Protocol):
    def network(self, unet: UNet, timesteps: Tensor) -> UNet:
        """Called once a forward with timesteps [B]: the UNet whose layers run, `unet` or one with other weights."""
        ...

    def bind(self, timesteps: Tensor, size: tuple[int, int]) -> BoundAdapters:
        """Called once a forward with timesteps [B] and the latent size (h, w)."""
        ...


class UNet(nn.Module):
    """Predicts the noise in video latents.

    operations: namespace of the parametrised layers (Conv1d, Conv2d, Conv3d, Linear, GroupNorm, LayerNorm), each built
    with device= and dtype=. attention: function of q, k, v [batch, heads, length, head_dim], scaled by head_dim**-0.5.
    gradient_checkpointing: attribute; recomputes each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        operations: Any = nn,
        attention: AttentionFunction = F.scaled_dot_product_attention,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        ops, factory = operations, {"device": device, "dtype": dtype}
        dim, levels = config.dim, list(zip(config.channels, config.attention_levels, strict=True))

        def stage(channels_in: int, channels: int, attends: bool) -> Block:
            block = Block([ResBlock(config, channels_in, channels, ops, factory)])
            if attends:
                block.append(SpatialTransformer(config, channels, attention, ops, factory))
                block.append(
                    TemporalTransformer(config, channels, channels // config.head_dim, attention, ops, factory)
                )
            return block

        self.time_embed = nn.Sequential(
            ops.Linear(dim, config.embed_dim, **factory),
            nn.SiLU(),
            ops.Linear(config.embed_dim, config.embed_dim, **factory),
        )

        first = TemporalTransformer(config, dim, config.first_heads, attention, ops, factory)
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([ops.Conv2d(config.in_channels, dim, 3, padding=1, **factory), first])]
        )
        width, skips = dim, [dim]
        for level, (channels, attends) in enumerate(levels):
            for _ in range(config.res_blocks):
                self.input_blocks.append(stage(width, channels, attends))
                width = channels
                skips.append(width)
            if level < len(levels) - 1:
                self.input_blocks.append(Downsample(width, ops, factory))
                skips.append(width)

        self.middle_block = stage(width, width, attends=True)
        self.middle_block.append(ResBlock(config, width, width, ops, factory))

        self.output_blocks = nn.ModuleList()
        for level, (channels, attends) in reversed(list(enumerate(levels))):
            for _ in range(config.res_blocks + 1):
                block = stage(width + skips.pop(), channels, attends)
                self.output_blocks.append(block)
                width = channels
            if level > 0:
                block.append(Upsample(width, ops, factory))

        self.out = nn.Sequential(
            ops.GroupNorm(config.norm_groups, dim, **factory),
            nn.SiLU(),
            ops.Conv2d(dim, config.out_channels, 3, padding=1, **factory),
        )
        self._zero_residuals()
        for name, module in self.named_modules():
            if isinstance(module, TransformerBlock | TemporalConv):
                module.site = name
        for layer, site in enumerate(text_layers(config)):
            cast(TransformerBlock, self.get_submodule(f"{site}.transformer_blocks.0")).layer = layer

    def _zero_residuals(self) -> None:
        """A new network starts with every residual branch, and its output, at zero."""
        layers: list[nn.Module] = [self.out[-1]]
        for module in self.modules():
            if isinstance(module, ResBlock):
                layers += [module.out_layers[-1], module.temopral_conv.conv4[-1]]
            elif isinstance(module, SpatialTransformer | TemporalTransformer):
                layers.append(module.proj_out)
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

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
        frames = x.shape[2]
        timesteps = timesteps.to(x.device)
        network = self if adapters is None else adapters.network(self, timesteps)
        call = Call(
            frames=frames,
            embedding=network.time_embed(sinusoid(timesteps, self.config.dim).to(x.dtype)),  # [B, E]
            context=context.to(x),
            adapters=None if adapters is None else adapters.bind(timesteps, size=(x.shape[3], x.shape[4])),
            checkpointing=self.gradient_checkpointing and torch.is_grad_enabled(),
            watch=watch,
        )

        first_conv, first_transformer = network.input_blocks[0].children()
        h = run(first_transformer, first_conv(fold_frames(x)), call)  # [B*F, C, h, w]
        skips = [h]
        for block in network.input_blocks[1:]:
            h = block(h, call)
            skips.append(h)
        h = network.middle_block(h, call)
        for block in network.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), call)
        return unfold_frames(network.out(h), frames)

    def _check(self, x: Tensor, timesteps: Tensor, context: Tensor) -> None:
        config, stride = self.config, self.config.stride
        if x.ndim != 5 or x.shape[1] != config.in_channels or 0 in x.shape:
            raise ValueError(
                f"The UNet takes latents of shape [B, {config.in_channels}, F, h, w], got {list(x.shape)}."
            )
        batch, height, width = x.shape[0], x.shape[3], x.shape[4]
        check_divides("A latent", width, height, stride, "cells")
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
