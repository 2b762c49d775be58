"""What every figure is measured in, and the rows it gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from dreamvideo.encoders.protocols import Encoders
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.unet import UNet

from .clock import Clock
from .sizes import SIZES, Size, make_encoders, make_unet, randomised

CAPTION = "a * on the road"


@dataclass
class Setting:
    """Size, device, precision and patience; models are made when first asked for.

    rounds: how often each job runs; steps: DDIM steps of a round of sampling; given: pixels and frames other than the
    size's own; quick: the demo in its short form.
    """

    size_name: str
    device: torch.device
    rounds: int
    steps: int
    clock_kind: str
    given: dict[str, int] = field(default_factory=dict)
    quick: bool = False

    @property
    def size(self) -> Size:
        return replace(SIZES[self.size_name], **self.given)

    @property
    def dtype(self) -> torch.dtype:
        """Of our weights: half precision on a GPU, float32 on the CPU, where neither side has another."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def clock(self) -> Clock:
        return Clock(self.device, self.clock_kind)

    @property
    def side(self) -> int:
        """Of the latents."""
        return self.size.pixels // 8

    @cached_property
    def unet(self) -> UNet:
        return make_unet(self.size, self.device, self.dtype)

    @cached_property
    def encoders(self) -> Encoders:
        return make_encoders(self.size, self.device)

    def adapter(self, kind: str) -> Adapter:
        """A trained adapter: no weight is zero. float32."""
        width = self.size.feature_width
        config = AdapterConfig.motion(condition_dim=width) if kind == "motion" else AdapterConfig.identity()
        return randomised(Adapter(config, self.size.unet, self.device)).requires_grad_(False)

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device)

    def clips(self, count: int, frames: int) -> Tensor:
        """[count, frames, 3, H, W] in 0..1."""
        pixels = self.size.pixels
        generator = torch.Generator().manual_seed(1)
        return torch.rand((count, frames, 3, pixels, pixels), generator=generator).to(self.device)


@dataclass(frozen=True)
class Row:
    """One line of the table: what, how much, in which unit ("x", "%", "GiB", "" for an exponent), and the target."""

    figure: int
    what: str
    value: float
    unit: str
    target: str = ""
    absolute: dict[str, float] = field(default_factory=dict)  # name with its unit -> amount


def check_agreement(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Raise ValueError unless both are the same up to `tolerance` of their spread: what differs is not compared."""
    difference = ((ours.float() - theirs.float()).square().mean().sqrt() / theirs.float().std()).item()
    if not difference <= tolerance:
        raise ValueError(
            f"{what}: the peer's result differs by {difference:.2g} of its spread (at most {tolerance:g})."
        )
