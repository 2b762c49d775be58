"""The models that are measured: three sizes with random weights, their encoders in proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from open_clip.model import CLIP
from torch import nn

from dreamvideo.encoders.autoencoder import KLAutoencoder
from dreamvideo.encoders.clip import OpenClipImage, OpenClipText
from dreamvideo.encoders.protocols import Encoders
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.layers import economical
from dreamvideo.models.unet import UNet


@dataclass(frozen=True)
class Size:
    """A base: its UNet and its encoders, whose share of the arithmetic is that of the full-size model.

    A 256 x 256 frame costs the full-size UNet 0.305 TFLOP, its VAE 0.273 to encode and its CLIP 0.335; a prompt 0.047.
    The middle UNet costs 1/12 of that, and so do the middle VAE (1/16) and CLIP.
    """

    unet: UNetConfig
    vision: dict[str, Any]
    text: dict[str, Any]
    vae_channels: tuple[int, ...]
    pixels: int = 256  # height and width
    frames: int = 32

    @property
    def feature_width(self) -> int:
        return self.unet.context_dim


def _vision(width: int, layers: int, head_width: int) -> dict[str, Any]:
    return {"image_size": 224, "patch_size": 14, "width": width, "layers": layers, "head_width": head_width}


def _text(width: int, layers: int) -> dict[str, Any]:
    return {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": layers}


TINY = UNetConfig(
    dim=32, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), head_dim=8, context_dim=64, first_heads=8
)
SIZES = {
    "tiny": Size(TINY, _vision(64, 2, 64), _text(64, 2), (32, 32, 32, 32), pixels=64, frames=4),
    "middle": Size(UNetConfig(dim=64), _vision(640, 10, 64), _text(1024, 3), (32, 64, 128, 128)),
    "full": Size(UNetConfig(), _vision(1280, 32, 80), _text(1024, 24), (128, 256, 512, 512)),
}


def make_unet(size: Size, device: torch.device, dtype: torch.dtype) -> UNet:
    """Our UNet as `open_base` builds it, frozen, every weight random and none zero."""
    unet = UNet(size.unet, operations=economical(nn), device=device, dtype=torch.float32)
    return randomised(unet).to(dtype).eval().requires_grad_(False)


def make_encoders(size: Size, device: torch.device) -> Encoders:
    """CLIP and VAE in float32, as both sides have them."""
    clip = CLIP(embed_dim=size.feature_width, vision_cfg=size.vision, text_cfg=size.text).to(device).eval()
    vae = AutoencoderKL(
        block_out_channels=size.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    vae.to(device).eval()
    clip.requires_grad_(False)
    vae.requires_grad_(False)
    return Encoders(OpenClipText(clip), OpenClipImage(clip), KLAutoencoder(vae))


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Matrices that keep the scale of what passes through them, scales near one, small offsets; drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.1 * noise)
    return model
