"""A base's encoders from its files, frozen, and whether they go with its UNet."""

from __future__ import annotations

import torch

from ..files.base import BaseFiles
from ..files.encoders import read_clip, read_vae
from ..models.config import UNetConfig
from .autoencoder import KLAutoencoder, build_vae
from .clip import OpenClipImage, OpenClipText, build_clip
from .protocols import Encoders, TextEncoder


def load_encoders(base: BaseFiles, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Encoders:
    """The text encoder, image encoder and autoencoder of a base, frozen. ValueError if the base lacks a part."""
    clip_file, vae_file = base.file("clip"), base.file("vae")
    state, config = read_clip(clip_file)
    clip = build_clip(state, config, device, dtype)
    state, config = read_vae(vae_file)
    vae = build_vae(state, config, device, dtype)
    return Encoders(OpenClipText(clip), OpenClipImage(clip), KLAutoencoder(vae))


def check_matches(unet_config: UNetConfig, text: TextEncoder) -> None:
    """Raise ValueError unless the text encoder's states have the width of the UNet's context (`context_dim`)."""
    if text.width != unet_config.context_dim:
        raise ValueError(
            f"The UNet reads text states of width {unet_config.context_dim} and this text encoder gives {text.width}: "
            "use the CLIP file that belongs to the base (OpenCLIP ViT-H-14 for ModelScope)."
        )
