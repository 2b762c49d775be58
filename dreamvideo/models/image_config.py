"""The architecture of Stable Diffusion's UNet with AnimateDiff's motion modules, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..safety.limits import LIMITS, whole
from .config import ConvSite, NetworkConfig, TransformerSite

MOTION = "motion"  # the attribute below which the motion module's own names begin


@dataclass(frozen=True)
class ImageUNetConfig(NetworkConfig):
    """Stable Diffusion 1.5's UNet by default, alone or with motion modules (Guo et al., arXiv 2307.04725).

    `dim_mult` and `attention_levels` have one entry a level, finest first. heads: of every attention, whatever its
    width.
    motion_frames: how many frames the motion modules have positions for; None where there are none.
    motion_middle: whether one of them sits in the middle block (AnimateDiff v2).
    norm_across_frames: whether residual blocks, and the output, take a group norm's statistics over all frames of a
    video (AnimateDiff v1) or frame by frame. Transformers and motion modules take them frame by frame.
    """

    family: ClassVar[str] = "image"

    in_channels: int = 4
    out_channels: int = 4
    dim: int = 320
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    heads: int = 8
    context_dim: int = 768
    norm_groups: int = 32
    dropout: float = 0.0
    motion_frames: int | None = None
    motion_middle: bool = False
    norm_across_frames: bool = False

    def __post_init__(self) -> None:
        self._check_shape(("in_channels", "out_channels", "dim", "heads", "context_dim", "norm_groups"))
        if self.motion_frames is not None:
            whole("ImageUNetConfig: motion_frames", self.motion_frames, int(LIMITS["frames"].most))
        if not isinstance(self.motion_middle, bool) or not isinstance(self.norm_across_frames, bool):
            raise ValueError("ImageUNetConfig: motion_middle and norm_across_frames are true or false")
        if self.motion_middle and self.motion_frames is None:
            raise ValueError("ImageUNetConfig: a motion module in the middle needs motion_frames, and there are none.")
        for channels in (self.dim, *self.channels):
            if channels % self.norm_groups or channels % (2 * self.heads):
                raise ValueError(
                    f"ImageUNetConfig: {channels} channels must divide by {self.norm_groups} (norm groups) "
                    f"and by twice {self.heads} (heads)."
                )

    def to_dict(self) -> dict[str, Any]:
        return {"family": self.family, **super().to_dict()}

    @property
    def has_motion(self) -> bool:
        return self.motion_frames is not None

    @property
    def linear_betas(self) -> bool:
        return self.has_motion

    @property
    def head_width(self) -> int:
        return self.channels[0] // self.heads

    @property
    def most_frames(self) -> int | None:
        return self.motion_frames

    def level_of(self, site: str) -> float:
        part, _, rest = site.partition(".")
        if part != MOTION:
            return super().level_of(site)
        side, index, *_ = rest.split(".")
        levels = len(self.dim_mult)
        if side == "mid_block":
            return 1.0
        return (int(index) if side == "down_blocks" else levels - 1 - int(index)) / levels

    def transformer_sites(self) -> list[TransformerSite]:
        sites: list[TransformerSite] = []

        def stage(block: str, channels: int, attends: bool, motion: str | None) -> None:
            if attends:
                sites.append(TransformerSite(f"{block}.1", "spatial", channels))
            if motion:
                sites.append(TransformerSite(f"{MOTION}.{motion}.temporal_transformer", "temporal", channels))

        levels, blocks = list(zip(self.channels, self.attention_levels, strict=True)), self.res_blocks + 1
        for level, (channels, attends) in enumerate(levels):
            for index in range(self.res_blocks):
                motion = f"down_blocks.{level}.motion_modules.{index}" if self.has_motion else None
                stage(f"input_blocks.{level * blocks + index + 1}", channels, attends, motion)
        stage("middle_block", self.channels[-1], True, "mid_block.motion_modules.0" if self.motion_middle else None)
        for level, (channels, attends) in enumerate(reversed(levels)):
            for index in range(blocks):
                motion = f"up_blocks.{level}.motion_modules.{index}" if self.has_motion else None
                stage(f"output_blocks.{level * blocks + index}", channels, attends, motion)
        return sites

    def temporal_convolutions(self) -> list[ConvSite]:
        return []
