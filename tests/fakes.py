"""A base in miniature whose encoders are plain deterministic functions: nothing to load, milliseconds a step."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F

from dreamvideo.encoders.protocols import Encoders, Moments
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.unet import UNet

CONFIG = UNetConfig(
    dim=32, dim_mult=(1,), res_blocks=1, attention_levels=(True,), head_dim=16, first_heads=2, context_dim=8
)
WIDTH = CONFIG.context_dim
FEATURE_WIDTH = 6


class FakeText:
    """A word's embedding is drawn from its own hash; a text state mixes all words before it."""

    width = WIDTH

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def check_placeholder(self, name, taken=()):
        if not name.startswith("<"):
            raise ValueError(f"The placeholder {name!r} is an ordinary word; take a name such as <{name}>.")

    def embed_word(self, word):
        return torch.stack([self._draw(part) for part in word.split("-")])

    def encode(self, prompts, tokens=None, *, weighted=False):
        self.calls.append(list(prompts))
        tokens = tokens or {}
        rows = []
        for prompt in prompts:
            parts = [tokens[word] if word in tokens else self._draw(word)[None] for word in prompt.split()]
            words = torch.cat([torch.zeros(1, WIDTH), *parts])
            rows.append(F.pad(words.cumsum(0), (0, 0, 0, 77 - len(words))))
        return torch.stack(rows)

    def places(self, prompts, tokens):
        rows = []
        for prompt in prompts:
            parts = [[False], *([word in tokens] * len(tokens.get(word, "-")) for word in prompt.split())]
            flat = [place for part in parts for place in part]
            rows.append(flat + [False] * (77 - len(flat)))
        return torch.tensor(rows)

    def _draw(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


class FakeImage:
    width = FEATURE_WIDTH

    def encode(self, images):
        return F.adaptive_avg_pool2d(images, (1, 2)).flatten(1)  # [B, 6]


class FakeVAE:
    """Latents are 8 x 8 averages of the colours and their mean."""

    def encode(self, images, chunk=None):
        small = F.avg_pool2d(images, 8) * 2 - 1
        mean = torch.cat([small, small.mean(1, keepdim=True)], dim=1)
        return Moments(mean, torch.full_like(mean, 0.01))

    def decode(self, latents, chunk=None):
        return F.interpolate(latents[:, :3], scale_factor=8).add(1).div(2).clamp(0, 1)


def fake_encoders() -> Encoders:
    return Encoders(FakeText(), FakeImage(), FakeVAE())


def tiny_unet(seed: int = 0, dtype: torch.dtype = torch.float32) -> UNet:
    """Frozen, in eval mode, with every weight away from zero, so that adapters inside make a difference."""
    generator = torch.Generator().manual_seed(seed)
    unet = UNet(CONFIG).eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
        else:
            centre = 1.0 if name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))
    return unet.to(dtype)


def pictures(count: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    """[count, 3, side, side] of smooth colours, on the eight-bit grid like pictures from files."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 2, 2), generator=generator)
    return F.interpolate(coarse, (side, side), mode="bilinear").mul(255).round().div(255)
