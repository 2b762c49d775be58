"""The ModelScope text-to-video UNet: a 2-D UNet whose every stage is followed by a module that mixes frames.

Frames are folded into the batch, [B*F, C, H, W]; temporal modules unfold them. Module names are the key names of the
original checkpoint (`temopral_conv` is spelt so there), so its state dict loads as it is. Adapters are an argument of
`forward`: the UNet offers them every sublayer of every transformer block and every temporal convolution, and
owns none of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    AttentionFunction,
    Block,
    Downsample,
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
    TransformerBlock,
    VideoResBlock,
)
from .call import Call, run
from .config import UNetConfig
from .network import VideoUNet, close_residuals, number_text_layers


class UNet(VideoUNet):
    """ModelScope's.

    operations: namespace of the parametrised layers (Conv1d, Conv2d, Conv3d, Linear, GroupNorm, LayerNorm), each built
    with device= and dtype=. attention: function of q, k, v [batch, heads, length, head_dim], scaled by head_dim**-0.5.
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
        ops, factory = operations, {"device": device, "dtype": dtype}
        dim = config.dim

        def stage(channels_in: int, channels: int, attends: bool) -> Block:
            block = Block([VideoResBlock(config, channels_in, channels, ops, factory)])
            if attends:
                block.append(SpatialTransformer(config, channels, channels // config.head_dim, attention, ops, factory))
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
        first_conv = ops.Conv2d(config.in_channels, dim, 3, padding=1, **factory)
        self._lay_out(
            [first_conv, first], stage, lambda width: Downsample(width, ops, factory), VideoResBlock, ops, factory
        )
        self._zero_residuals()
        for name, module in self.named_modules():
            if isinstance(module, TransformerBlock | TemporalConv):
                module.site = name
        number_text_layers(self)

    def _zero_residuals(self) -> None:
        layers: list[nn.Module] = [self.out[-1]]
        for module in self.modules():
            if isinstance(module, VideoResBlock):
                layers += [module.out_layers[-1], module.temopral_conv.conv4[-1]]
            elif isinstance(module, SpatialTransformer | TemporalTransformer):
                layers.append(module.proj_out)
        close_residuals(layers)

    def path(self, x: Tensor, call: Call) -> Tensor:
        first_conv, first_transformer = self.input_blocks[0].children()
        h = run(first_transformer, first_conv(x), call)  # [B*F, C, h, w]
        skips = [h]
        for block in self.input_blocks[1:]:
            h = block(h, call)
            skips.append(h)
        h = self.middle_block(h, call)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), call)
        return call.through(self.out, h)
