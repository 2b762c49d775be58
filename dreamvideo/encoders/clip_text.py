"""CLIP's text tower as Stable Diffusion 1 has it: OpenAI's ViT-L, the last state behind the final norm.

Behind the same protocol as open_clip's, from which it differs in which block is the last and in what fills a prompt
up. Modules are called as transformers calls them, and so as a checkpoint's tensors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import END, OpenClipText
from .weights import filled


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, width / heads]
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Of a text tower, or with `causal` False of an image tower."""

    def __init__(self, config: Mapping[str, Any], causal: bool = True) -> None:
        super().__init__()
        width = config["width"]
        self.quick = config["activation"] == "quick_gelu"
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, config["heads"], causal)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, config["hidden"]), "fc2": nn.Linear(config["hidden"], width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class TextTower(nn.Module):
    """config: of `files.text_encoders.stored_text`. It has open_clip's names for what `OpenClipText` asks for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["width"]
        embeddings = {
            "token_embedding": nn.Embedding(config["vocabulary"], width),
            "position_embedding": nn.Embedding(config["length"], width),
        }
        layers = nn.ModuleList([Layer(config) for _ in range(config["layers"])])
        self.text_model = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(embeddings),
                "encoder": nn.ModuleDict({"layers": layers}),
                "final_layer_norm": nn.LayerNorm(width),
            }
        )
        self.context_length: int = config["length"]

    @property
    def token_embedding(self) -> Any:
        return self._part("embeddings.token_embedding")

    @property
    def positional_embedding(self) -> Any:
        return self._part("embeddings.position_embedding").weight

    @property
    def ln_final(self) -> Any:
        return self._part("final_layer_norm")

    @property
    def layers(self) -> Any:
        return self._part("encoder.layers")

    def _part(self, name: str) -> Any:
        return self.text_model.get_submodule(name)


class ClipText(OpenClipText):
    """All blocks, then the final norm, all positions; a prompt is filled up with the token that ends it."""

    pad = END
    least_blocks = 1

    def _layers(self) -> Any:
        return self.clip.layers

    def _blocks(self, x: Tensor) -> Tensor:
        for layer in self.clip.layers:
            x = layer(x)
        return x


def build_text(
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The text tower of weights in transformers' names, frozen. Empties `state`. ValueError for misshapen tensors."""
    return filled(hollow_text(config, dtype), state, device, dtype, "text encoder")


def hollow_text(config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """The text tower, frozen, with its weights on the meta device."""
    with torch.device("meta"):
        return TextTower(config).to(dtype).eval().requires_grad_(False)
