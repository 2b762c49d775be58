"""What turns prompts, images and pixels into what the UNet reads, as three small protocols.

open_clip's CLIP and diffusers' AutoencoderKL stand behind them here; another host puts its own encoders there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

PIXELS_AT_ONCE = 2 * 256 * 256  # of pictures that are encoded or decoded between two reports: seconds on a CPU
LATENT_SCALE = 0.18215  # Stable Diffusion's f8 autoencoder: brings latents to about unit variance


class TextEncoder(Protocol):
    """Prompts to text states."""

    @property
    def width(self) -> int: ...

    def encode(
        self, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None, *, weighted: bool = False
    ) -> Tensor:
        """Text states [B, 77, D] of B prompts; `tokens` maps placeholders to learned vectors [n, D], differentiably.

        weighted: brackets are weights, as in `prompts.read_weights`; else they are text, as captions want it.
        """
        ...

    def embed_word(self, word: str) -> Tensor:
        """Token embeddings [n, D] of a word or a phrase, one row a byte-pair token."""
        ...

    def places(self, prompts: Sequence[str], tokens: Mapping[str, Tensor]) -> Tensor:
        """Where learned tokens [n, D] stand in the text states of B prompts: bool [B, 77]."""
        ...

    def check_placeholder(self, name: str, taken: Iterable[str] = ()) -> None:
        """Raise ValueError unless `name` can stand for a learned token beside the placeholders `taken`."""
        ...


class ImageEncoder(Protocol):
    """Images to the features that guide motion adapters."""

    @property
    def width(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D], not normalised, of images [B, 3, H, W] in 0..1 of any size."""
        ...


class NoImages:
    """In the place of an image encoder, where a base has none: motions are then learned without appearance guidance."""

    width = 0

    def encode(self, images: Tensor) -> Tensor:
        raise ValueError(
            "This base has no image encoder, so no image guides: give one besides (--clip with "
            "open_clip_pytorch_model.bin or a CLIP-ViT-H-14 of clip_vision), or leave appearance guidance out."
        )


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of scaled latents, each [N, 4, H/8, W/8]."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw of the latents; the noise comes from the generator's own device, so a seed means one thing."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)


class Autoencoder(Protocol):
    """Pixels to latents and back."""

    def encode(self, images: Tensor, chunk: int | None = None) -> Moments:
        """Moments of the scaled latents of images [N, 3, H, W] in 0..1, `chunk` images at a time."""
        ...

    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Images [N, 3, H, W] in 0..1 of scaled latents [N, 4, H/8, W/8], `chunk` at a time."""
        ...


@dataclass(frozen=True)
class Encoders:
    """The three encoders of a base; an image base may lack the one for images, see `NoImages`.

    fingerprint: names their weights, device and precision, for what is cached of their results; "" where unknown.
    """

    text: TextEncoder
    image: ImageEncoder
    vae: Autoencoder
    fingerprint: str = ""


def release(*encoders: TextEncoder | ImageEncoder | Autoencoder) -> None:
    """Tell encoders that they are not needed for a while: those that can be read again let go of their weights."""
    for encoder in encoders:
        let_go = getattr(encoder, "release", None)
        if let_go is not None:
            let_go()


def at_once(height: int, width: int) -> int:
    """How many pictures of that size, in pixels, to encode or decode between two reports."""
    return max(PIXELS_AT_ONCE // (height * width), 1)


def checked_images(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"Images come as [N, 3, height, width]; these have shape {list(images.shape)}.")
    return images


def full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
