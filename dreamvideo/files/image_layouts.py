"""Names of the image UNet's and the motion modules' tensors in every layout in circulation.

Canonical are the names of Stable Diffusion 1's checkpoints, without their prefix, and below `motion` those of
AnimateDiff's files; other layouts are renamings of them.
"""

from __future__ import annotations

import re

from ..models.image_config import MOTION
from .layouts import diffusers_name, plain_name

# Parts of a motion module: AnimateDiff's name -> diffusers'.
_MOTION_PARTS = {
    "attention_blocks.0": "attn1",
    "attention_blocks.1": "attn2",
    "norms.0": "norm1",
    "norms.1": "norm2",
    "ff_norm": "norm3",
}


def image_diffusers_name(name: str, res_blocks: int) -> str:
    """The name in diffusers' UNetMotionModel (or UNet2DConditionModel, or MotionAdapter) of a tensor of ours."""
    if name.startswith(f"{MOTION}."):
        return motion_diffusers_name(name.removeprefix(f"{MOTION}."))
    # The video UNet's middle has a temporal transformer more, and so its last residual block one place further.
    return diffusers_name(re.sub(r"^middle_block\.2\.", "middle_block.3.", plain_name(name)), res_blocks)


def motion_diffusers_name(name: str) -> str:
    """The name in diffusers' MotionAdapter of a tensor of AnimateDiff's motion module."""
    name = name.replace(".temporal_transformer.", ".", 1)
    for ours, theirs in _MOTION_PARTS.items():
        name = name.replace(f".transformer_blocks.0.{ours}.", f".transformer_blocks.0.{theirs}.")
    return name
