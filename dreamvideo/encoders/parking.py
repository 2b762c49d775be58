"""Encoders that lie in main memory and visit the device for each call, so that a small card is left to the UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .protocols import Encoders

PIXELS_PER_VISIT = 2 * 256 * 256  # what a parked autoencoder takes at once


class Parked:
    """An encoder whose tensors are on the CPU but during `encode` and `decode`; else it is the encoder it holds.

    A call whose result wants gradients leaves them on the device, for the backward pass and for the next step's call;
    the first call without takes them back.
    """

    def __init__(self, encoder: Any, tensors: Callable[[], Iterable[Tensor]], device: torch.device) -> None:
        self._encoder, self._tensors, self._device = encoder, tensors, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, *given: Any, **named: Any) -> Any:
        return self._visit(self._encoder.encode, given, named)

    def decode(self, *given: Any, **named: Any) -> Any:
        return self._visit(self._encoder.decode, given, named)

    def _visit(self, call: Callable[..., Any], given: tuple, named: dict[str, Any]) -> Any:
        wanted = False
        self._move(self._device)
        try:
            found = call(*given, **named)
            wanted = getattr(found, "requires_grad", False)
            return found
        finally:
            if not wanted:
                self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for tensor in self._tensors():
            tensor.data = tensor.data.to(device)


class ParkedAutoencoder(Parked):
    """In smaller slices, too."""

    def encode(self, images: Tensor, chunk: int | None = None) -> Any:
        return super().encode(images, chunk or _slice(images, 1))

    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        return super().decode(latents, chunk or _slice(latents, self.factor))


def _slice(x: Tensor, factor: int) -> int:
    return max(PIXELS_PER_VISIT // (x.shape[-2] * x.shape[-1] * factor**2), 1)


def park(encoders: Encoders, device: torch.device) -> Encoders:
    """The same encoders (of `encoders.load_encoders`, on the CPU), each visiting `device` when it is called."""
    clip, vae = networks_of(encoders)
    seen = getattr(encoders.image, "clip", None)  # the same CLIP, another one, or none at all
    text: Any = Parked(encoders.text, lambda: _of(clip, visual=False), device)
    image: Any = encoders.image if seen is None else Parked(encoders.image, lambda: _of(seen, visual=True), device)
    autoencoder = ParkedAutoencoder(encoders.vae, lambda: [*vae.parameters(), *vae.buffers()], device)
    return Encoders(text, image, autoencoder)


def networks_of(encoders: Encoders) -> tuple[nn.Module, nn.Module]:
    """The CLIP and the autoencoder behind the encoders of `loading.load_encoders`; another host's may have none."""
    text: Any = encoders.text
    autoencoder: Any = encoders.vae
    return text.clip, autoencoder.vae


def _of(clip: nn.Module, visual: bool) -> list[Tensor]:
    """The tensors of one of CLIP's two towers."""
    named = [*clip.named_parameters(), *clip.named_buffers()]
    return [tensor for name, tensor in named if name.startswith("visual.") == visual]
