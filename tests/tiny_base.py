"""A base of random weights, small enough to be written, loaded and trained in moments: the three real architectures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import nn

from dreamvideo.files.tensors import write_safetensors
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.unet import UNet

WIDTH = 16  # of the text states
UNET = UNetConfig(
    dim=16,
    dim_mult=(1, 2),
    res_blocks=1,
    attention_levels=(True, False),
    head_dim=8,
    first_heads=2,
    context_dim=WIDTH,
    norm_groups=4,
    dropout=0.0,
)
SIDE = 16  # pixels that the UNet's size must divide by: 8 of the autoencoder times its own stride
CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
}
VAE = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


def write_tiny_base(folder: Path, seed: int = 0) -> Path:
    """Write unet.safetensors, clip.safetensors and vae.safetensors into `folder`, which is returned."""
    from diffusers import AutoencoderKL
    from open_clip.model import CLIP as OpenClip

    parts = {
        "unet": (UNet(UNET), "unet_config", UNET.to_dict()),
        "clip": (OpenClip(**CLIP), "open_clip_config", CLIP),
        "vae": (AutoencoderKL(**VAE), "vae_config", VAE),
    }
    for part, (model, key, config) in parts.items():
        state = randomised(model, seed).state_dict()
        write_safetensors(folder / f"{part}.safetensors", state, {key: json.dumps(config)})
    return folder


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with every weight drawn from a seed and none left at zero, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            is_scale = re.search(r"(norm|ln)\w*\.weight$|layers\.0\.weight$", name) is not None
            parameter.copy_(float(is_scale) + 0.1 * noise)
    return model.eval()
