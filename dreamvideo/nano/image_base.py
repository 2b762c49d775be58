"""Trains the embedded image base: a Stable Diffusion in miniature and a motion module of AnimateDiff on the toy world.

The image model begins as the spatial half of the embedded base's UNet, whose text states it reads; it learns from
single frames. The motion module learns on it from videos while it stays as it is (Guo et al., arXiv 2307.04725).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.animatediff import ImageUNet
from ..models.blocks import TemporalConv, TemporalTransformer
from ..models.image_config import ImageUNetConfig
from ..models.unet import UNet
from . import denoiser, world
from .progress import Loop, averaged

CONFIG = ImageUNetConfig(
    dim=denoiser.CONFIG.dim,
    dim_mult=denoiser.CONFIG.dim_mult,
    res_blocks=denoiser.CONFIG.res_blocks,
    attention_levels=denoiser.CONFIG.attention_levels,
    context_dim=denoiser.CONFIG.context_dim,
)
VIDEO = replace(CONFIG, motion_frames=world.FRAMES)
RATE, ADAM_RATE = 5e-3, 5e-4  # of the image model, half of what it was begun with


def train_pictures(folder: Path, encoders: Any, steps: int, device: torch.device | str = "cpu", share: int = 1) -> None:
    """Train the image model to `folder`/image.pt from the UNet that `folder`/unet.pt holds, resuming what is there.

    Heads are Stable Diffusion's eight where the UNet's are 64 channels wide, so that its attention learns anew what to
    attend to. share: as of `denoiser.train`.
    """
    torch.manual_seed(0)
    unet = ImageUNet(CONFIG)
    unet.load_state_dict(spatial_state(averaged(folder / "unet.pt", "unet.")))
    optimizer = denoiser.optimizer_of(unet.to(device), RATE, ADAM_RATE)
    _train(folder, "image", unet, unet, encoders, optimizer, steps, share * denoiser.PICTURES)


def train_motion_module(
    folder: Path, encoders: Any, steps: int, device: torch.device | str = "cpu", share: int = 1
) -> None:
    """Train the motion module to `folder`/motion_module.pt on the image model of `folder`/image.pt, resuming."""
    torch.manual_seed(0)
    unet = ImageUNet(VIDEO).requires_grad_(False)
    found = averaged(folder / "image.pt")
    unet.load_state_dict(unet.state_dict() | found)
    assert unet.motion is not None
    unet.motion.requires_grad_(True)
    optimizer = denoiser.optimizer_of(unet.to(device))
    _train(folder, "motion_module", unet, unet.motion, encoders, optimizer, steps, share * denoiser.VIDEOS)


def _train(
    folder: Path, part: str, unet: ImageUNet, trained: nn.Module, encoders: Any, optimizer, steps: int, count: int
) -> None:
    drawn = denoiser.bank(folder / "bank", encoders.vae)
    loop = Loop(folder / f"{part}.pt", trained, optimizer, steps, decay=0.997)
    for step in loop:
        optimizer.at(denoiser.rate_at(step, steps))
        loop.update(denoiser.step_loss(unet, encoders.text, drawn, step, steps, count, pictures=part == "image"))


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
