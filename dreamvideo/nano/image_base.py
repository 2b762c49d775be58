"""Trains the embedded image base: a Stable Diffusion in miniature and a motion module of AnimateDiff on the toy world.

The image model begins as the spatial half of the embedded base's UNet, whose text states it reads; it learns from
single frames. The motion module learns on it from videos while it stays as it is (Guo et al., arXiv 2307.04725).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..encoders.protocols import Encoders
from ..models.animatediff import ImageUNet
from ..models.blocks import TemporalConv, TemporalTransformer
from ..models.image_config import ImageUNetConfig
from ..models.unet import UNet
from . import denoiser, world
from .denoiser import Kind, Lesson, steps_of
from .latents import bank
from .progress import Loop, averaged

CONFIG = ImageUNetConfig(
    dim=denoiser.CONFIG.dim,
    dim_mult=denoiser.CONFIG.dim_mult,
    res_blocks=denoiser.CONFIG.res_blocks,
    attention_levels=denoiser.CONFIG.attention_levels,
    context_dim=denoiser.CONFIG.context_dim,
)
VIDEO = replace(CONFIG, motion_frames=world.FRAMES)
STILL = (Lesson(800, (Kind.PICTURES,), rate=0.5),)
MOVING = (
    Lesson(100, (Kind.WAYS,), small=True, rate=0.5, families=1),
    Lesson(200, (Kind.WAYS,), small=True, rate=0.5, families=24),
    Lesson(500, (Kind.WAYS, Kind.VIDEOS, Kind.LATEST), small=True, rate=0.5),
    Lesson(700, (Kind.WAYS, Kind.VIDEOS, Kind.LATEST), rate=0.5),
)


def train_pictures(
    folder: Path,
    encoders: Encoders,
    lessons: Sequence[Lesson] = STILL,
    device: torch.device | str = "cpu",
    share: int = 1,
) -> None:
    """Train the image model to `folder`/image.pt from the UNet that `folder`/unet.pt holds, resuming what is there.

    Heads are Stable Diffusion's eight where the UNet's are 64 channels wide, so that its attention learns anew what to
    attend to. share: as of `denoiser.train`.
    """
    torch.manual_seed(0)
    unet = ImageUNet(CONFIG, attention=denoiser.attend)
    unet.load_state_dict(spatial_state(averaged(folder / "unet.pt", "unet.")))
    _train(folder, "image", unet.to(device), unet, encoders, lessons, share)


def train_motion_module(
    folder: Path,
    encoders: Encoders,
    lessons: Sequence[Lesson] = MOVING,
    device: torch.device | str = "cpu",
    share: int = 1,
) -> None:
    """Train the motion module to `folder`/motion_module.pt on the image model of `folder`/image.pt, resuming."""
    torch.manual_seed(0)
    unet = ImageUNet(VIDEO, attention=denoiser.attend).requires_grad_(False)
    found = averaged(folder / "image.pt")
    unet.load_state_dict(unet.state_dict() | found)
    assert unet.motion is not None
    unet.motion.requires_grad_(True)
    _train(folder, "motion_module", unet.to(device), unet.motion, encoders, lessons, share)


def _train(
    folder: Path,
    part: str,
    unet: ImageUNet,
    trained: nn.Module,
    encoders: Encoders,
    lessons: Sequence[Lesson],
    share: int,
) -> None:
    drawn = bank(folder / "bank", encoders.vae)
    optimizer = denoiser.optimizer_of(unet)
    loop = Loop(folder / f"{part}.pt", trained, optimizer, steps_of(lessons), decay=0.997)
    for step in loop:
        optimizer.at(denoiser.rate_at(step, lessons))
        loop.update(denoiser.step_loss(unet, encoders.text, drawn, step, lessons, share))


def spatial_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The spatial half of a UNet's state under the names and in the shapes of the image model.

    Both networks are laid out by one piece, so what they have in common comes in the same order.
    """
    with torch.device("meta"):
        video, still = UNet(denoiser.CONFIG), ImageUNet(CONFIG).state_dict()
    temporal = tuple(
        f"{name}." for name, module in video.named_modules() if isinstance(module, TemporalConv | TemporalTransformer)
    )
    kept = [name for name in video.state_dict() if not name.startswith(temporal)]
    return {new: state[old].reshape(still[new].shape) for old, new in zip(kept, still, strict=True)}
