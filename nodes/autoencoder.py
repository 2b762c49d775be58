"""The KL autoencoder of Stable Diffusion at any size: ComfyUI's own fixes the norm groups at 32, and the embedded
base's has 2. Module names are diffusers' key names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm(groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Resnet(nn.Module):
    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = _norm(groups, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # [N, H*W, C]
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](h).transpose(1, 2).view_as(x)


class Resample(nn.Module):
    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1)))  # as in the original: right and below only
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    def __init__(self, channels: int, out_channels: int, resnets: int, groups: int, resample: str | None) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * (resnets - 1)
        self.resnets = nn.ModuleList(Resnet(width, out_channels, groups) for width in widths)
        self.resample = resample
        if resample:
            self.add_module(resample, nn.ModuleList([Resample(out_channels, resample == "downsamplers")]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return getattr(self, self.resample)[0](x) if self.resample else x


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)])
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], layers: int, groups: int, latent: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        pairs = list(zip((channels[0], *channels), channels, strict=False))
        self.down_blocks = nn.ModuleList(
            Block(before, after, layers, groups, "downsamplers" if level < len(pairs) - 1 else None)
            for level, (before, after) in enumerate(pairs)
        )
        self.mid_block = Middle(channels[-1], groups)
        self.conv_norm_out = _norm(groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], layers: int, groups: int, latent: int) -> None:
        super().__init__()
        turned = channels[::-1]
        self.conv_in = nn.Conv2d(latent, turned[0], 3, padding=1)
        self.mid_block = Middle(turned[0], groups)
        pairs = list(zip((turned[0], *turned), turned, strict=False))
        self.up_blocks = nn.ModuleList(
            Block(before, after, layers + 1, groups, "upsamplers" if level < len(pairs) - 1 else None)
            for level, (before, after) in enumerate(pairs)
        )
        self.conv_norm_out = _norm(groups, turned[-1])
        self.conv_out = nn.Conv2d(turned[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class SmallAutoencoder(nn.Module):
    """From diffusers' config of an AutoencoderKL. Has the interface of ComfyUI's first-stage models.

    encode: images [N, 3, H, W] in -1..1 -> the mean latents [N, 4, h, w], unscaled; decode: back.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels, layers = tuple(config["block_out_channels"]), config["layers_per_block"]
        groups, latent = config.get("norm_num_groups", 32), config.get("latent_channels", 4)
        self.encoder = Encoder(channels, layers, groups, latent)
        self.decoder = Decoder(channels, layers, groups, latent)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, x: Tensor) -> Tensor:
        return torch.chunk(self.quant_conv(self.encoder(x)), 2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
