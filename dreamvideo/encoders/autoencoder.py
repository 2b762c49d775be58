"""Pixels to latents and back: diffusers' `AutoencoderKL` behind the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.threads import threads_for
from ..safety.sizes import check_divides
from .protocols import LATENT_SCALE, Moments, checked_images, full_precision
from .weights import filled

PIXELS_PER_CHUNK = 8 * 256 * 256  # what the autoencoder takes at once unless told


class KLAutoencoder:
    """diffusers' `AutoencoderKL` with the latent scale applied, a few images at a time."""

    def __init__(self, vae: nn.Module):
        self.vae: Any = vae  # torch knows no types of a module's parts

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along each side (8)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def to(self, *args: Any, **kwargs: Any) -> KLAutoencoder:
        """Move the autoencoder, as `nn.Module.to`."""
        self.vae.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, chunk: int | None = None) -> Moments:
        """Moments of the scaled latents of images [N, 3, H, W] in 0..1.

        `chunk` images go in at a time; by default as many as make up eight of 256 x 256 pixels. ValueError unless
        height and width divide by `factor`.
        """
        height, width = checked_images(images).shape[-2:]
        check_divides("A picture", width, height, self.factor)
        with self._threads():
            parts = [self.vae.encode(part * 2 - 1).latent_dist for part in self._parts(images, chunk, height * width)]
        mean = torch.cat([full_precision(part.mean) for part in parts])
        std = torch.cat([full_precision(part.std) for part in parts])
        return Moments(mean * LATENT_SCALE, std * LATENT_SCALE)

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Images [N, 3, H, W] in 0..1 of scaled latents [N, 4, H/8, W/8]; `chunk` as in encode."""
        channels = self.vae.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels or not len(latents):
            raise ValueError(f"Latents come as [N, {channels}, h, w]; these have shape {list(latents.shape)}.")
        pixels = latents.shape[-2] * latents.shape[-1] * self.factor**2
        parts = self._parts(latents / LATENT_SCALE, chunk, pixels)
        with self._threads():
            images = torch.cat([full_precision(self.vae.decode(part).sample) for part in parts])
        return (images / 2 + 0.5).clamp(0, 1)

    def _threads(self) -> AbstractContextManager[None]:
        return threads_for(self.vae, self.vae.encoder.conv_in.weight.device)

    def _parts(self, x: Tensor, chunk: int | None, pixels: int) -> Iterable[Tensor]:
        chunk = chunk or max(PIXELS_PER_CHUNK // pixels, 1)
        weight = self.vae.encoder.conv_in.weight
        return (part.to(weight) for part in x.split(chunk))


def build_vae(
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """diffusers' `AutoencoderKL` from weights in its names and its config; otherwise as build_clip."""
    return filled(hollow_vae(config), state, device, dtype, "VAE")


def hollow_vae(config: Mapping[str, Any], dtype=torch.float32) -> nn.Module:
    """diffusers' `AutoencoderKL`, frozen, its weights on the meta device."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    return nn.Module.to(vae, dtype).eval().requires_grad_(False)  # diffusers' own `to` would warn of a choice
