"""AnimateDiff's motion modules in files: which version, for which image model, under which names.

Told apart as diffusers and AnimateDiff-Evolved do: by the highest block (Stable Diffusion XL has three levels), a block
in the middle (v2), and the length of the positions (24 for v1, 32 else; AnimateLCM stores none and has 64).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..models.families import build_network
from ..models.image_config import MOTION, ImageUNetConfig
from ..safety.limits import bare
from ..safety.paths import PathLike
from .layouts import name_stranger, reshapable
from .motion_names import motion_diffusers_name
from .tensors import CheckpointError, StateDict, TensorFile, check_weights

LCM_POSITIONS = 64  # of AnimateLCM, whose files have none
V1_POSITIONS = 24
WAY_OUT = "take one for Stable Diffusion 1.5, such as v3_sd15_mm.ckpt from guoyww/animatediff on Hugging Face"

_START = re.compile(r"(?:^|\.)((?:down_blocks|up_blocks|mid_block)\.(?:\d+\.)?motion_modules\.)")
_POSITIONS = re.compile(r"\.(pos_encoder|pos_embed)\.pe$")
# What looks like a motion module and is another thing: a pattern among its names, what it is.
_RELATIVES = (
    (r"pos_encoder\.positional_encoding$|(^|\.)temporal_attentions\.", "a Hotshot-XL motion module, for SDXL"),
    (r"(^|\.)img_encoder\.", "an image-to-video motion module (AnimateLCM-I2V)"),
    (r"^conv_in\.weight$", "a PIA motion module, whose UNet has 9 input channels"),
    (r"controlnet_cond_embedding|controlnet_down_blocks", "a SparseCtrl encoder"),
)


@dataclass(frozen=True)
class MotionFile:
    """A motion module, opened and not yet read.

    state: every tensor under AnimateDiff's name. layout: "animatediff" or "diffusers". version: "v1", "v2", "v3" or
    "AnimateLCM". frames: how many it has positions for. channels: of its levels, finest first.
    """

    path: Path
    layout: str
    version: str
    frames: int
    channels: tuple[int, ...]
    state: StateDict

    @property
    def middle(self) -> bool:
        return any(name.startswith("mid_block.") for name in self.state)

    @property
    def dtype(self) -> torch.dtype:
        return self.state.dtype


def is_motion_module(names: Iterable[str]) -> bool:
    """Whether tensors of these names are, or hold, a motion module."""
    names = list(names)
    return any(_START.search(name) for name in names) and not any("lora" in name for name in names)


def is_motion_lora(names: Iterable[str]) -> bool:
    return any("lora" in name and _START.search(name) for name in names)


def read_motion_module(path: PathLike) -> MotionFile:
    """Open a motion module's file, in AnimateDiff's names, its trainer's or diffusers'.

    Raises CheckpointError for a file that is none, and for one that is for another image model.
    """
    file = TensorFile(path)
    for pattern, what in _RELATIVES:
        if any(re.search(pattern, name) for name in file.specs):
            raise CheckpointError(f"{file.path} is {what}, which no UNet here takes: {WAY_OUT}.")
    if is_motion_lora(file.specs):
        raise CheckpointError(
            f"{file.path} is a motion LoRA, not a motion module: merge it into one (dreamvideo convert MODULE OUT "
            "--lora FILE)."
        )
    if not is_motion_module(file.specs):
        raise CheckpointError(
            f"{file.path} is {name_stranger(file.specs)}, not an AnimateDiff motion module: {WAY_OUT}."
        )
    names = {name[match.start(1) :]: name for name in file.specs if (match := _START.search(name))}
    layout = "animatediff" if any(".temporal_transformer." in name for name in names) else "diffusers"
    if layout == "diffusers":
        names = {_animatediff_name(name): old for name, old in names.items()}
    positions = {file.specs[old].shape for name, old in names.items() if _POSITIONS.search(name)}
    stored = {name: old for name, old in names.items() if not _POSITIONS.search(name)}
    shapes = {name: file.specs[old].shape for name, old in stored.items()}
    channels = _channels(file.path, shapes)
    if len(channels) == 3 and channels[:2] == (320, 640):
        raise CheckpointError(
            f"{file.path} is a motion module for Stable Diffusion XL, which no UNet here is: {WAY_OUT}."
        )
    frames = next((shape[1] for shape in positions if len(shape) == 3), LCM_POSITIONS)
    state = StateDict(file, stored, shapes)
    found = MotionFile(file.path, layout, "", frames, channels, state)
    return replace(found, version=_version(found.middle, frames if positions else None))


def _version(middle: bool, positions: int | None) -> str:
    if positions is None:
        return "AnimateLCM"
    return "v2" if middle else "v1" if positions == V1_POSITIONS else "v3"


def _animatediff_name(name: str) -> str:
    """The name in AnimateDiff's files of a tensor of diffusers' MotionAdapter."""
    return motion_diffusers_name(name, back=True)


def _channels(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    pattern = re.compile(r"down_blocks\.(\d+)\.motion_modules\.0\.temporal_transformer\.norm\.weight")
    found = {int(match[1]): shapes[name] for name in shapes if (match := pattern.fullmatch(name))}
    if not found or sorted(found) != list(range(len(found))) or any(len(shape) != 1 for shape in found.values()):
        raise CheckpointError(f"{path} is an incomplete motion module: it lacks modules of its first levels.")
    return tuple(found[level][0] for level in range(len(found)))


def with_motion(config: ImageUNetConfig, motion: MotionFile) -> ImageUNetConfig:
    """The config of an image UNet with this motion module. Raises CheckpointError where they do not go together."""
    if motion.channels != config.channels:
        raise CheckpointError(
            f"{motion.path} is a motion module for another image model: its levels have {list(motion.channels)} "
            f"channels and the UNet's {list(config.channels)}; {WAY_OUT}."
        )
    return replace(
        config,
        motion_frames=motion.frames,
        motion_middle=motion.middle,
        norm_across_frames=motion.version == "v1",
    )


def checked(config: ImageUNetConfig, motion: MotionFile) -> MotionFile:
    """The motion module with exactly the tensors that a UNet of the config has. Raises CheckpointError without them."""
    network = build_network(config, device="meta").state_dict()
    mark = f"{MOTION}."
    wanted = {name.removeprefix(mark): tuple(each.shape) for name, each in network.items() if name.startswith(mark)}
    shapes = motion.state.shapes
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise CheckpointError(
            f"{motion.path} lacks {len(missing)} of the motion module's {len(wanted)} tensors (such as {missing[0]}): "
            "it is incomplete or another architecture."
        )
    surplus = [name for name in shapes if name not in wanted]
    if surplus:
        raise CheckpointError(
            f"{motion.path} has {len(surplus)} tensors that a motion module has not ({bare(min(surplus))} among them): "
            "it is another architecture."
        )
    for name, shape in wanted.items():
        if not reshapable(name, shapes[name], shape):
            raise CheckpointError(
                f"{motion.path}: {name} has shape {list(shapes[name])} where {list(shape)} is needed: "
                "it is another architecture."
            )
    state = StateDict(motion.state.file, {name: motion.state.stored[name] for name in wanted}, wanted)
    check_weights(motion.path, state.specs)
    return replace(motion, state=state)
