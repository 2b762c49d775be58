"""CLIP's image tower by itself, as transformers names its modules and so as a file of it names its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .clip import OpenClipImage
from .clip_text import Layer
from .weights import filled


class Embeddings(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, patch = config["width"], config["patch"]
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((config["size"] // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, patches, D]
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1)
        return x + self.position_embedding.weight


class ImageTower(nn.Module):
    """config: of `files.image_encoders.stored_image`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["width"]
        self.size: int = config["size"]
        layers = nn.ModuleList([Layer(config, causal=False) for _ in range(config["layers"])])
        self.vision_model = nn.ModuleDict(
            {
                "embeddings": Embeddings(config),
                "pre_layrnorm": nn.LayerNorm(width),
                "encoder": nn.ModuleDict({"layers": layers}),
                "post_layernorm": nn.LayerNorm(width),
            }
        )
        self.visual_projection = nn.Linear(width, config["projected"], bias=False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features [B, D] of normalised pixels [B, 3, size, size]."""
        x = self.vision_model["pre_layrnorm"](self.vision_model["embeddings"](pixels))
        for layer in self.vision_model.get_submodule("encoder.layers").children():
            x = layer(x)
        return self.visual_projection(self.vision_model["post_layernorm"](x[:, 0]))


class ClipImage(OpenClipImage):
    """The same feature of a tower that is called otherwise."""

    @property
    def width(self) -> int:
        return self.clip.visual_projection.out_features

    @property
    def image_size(self) -> int:
        return self.clip.size

    @property
    def _weight(self) -> Tensor:
        return self.clip.visual_projection.weight


def build_image(
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The image tower of weights in transformers' names, frozen. Empties `state`. ValueError for misshapen tensors."""
    return filled(hollow_image(config, dtype), state, device, dtype, "image encoder")


def hollow_image(config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """The image tower, frozen, with its weights on the meta device."""
    with torch.device("meta"):
        return ImageTower(config).to(dtype).eval().requires_grad_(False)
