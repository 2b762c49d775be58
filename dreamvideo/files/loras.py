"""AnimateDiff's LoRAs, motion LoRAs and the v3 domain adapter, as differences of a base's own weights.

Such a file is no adapter that a prompt's base wears: it is merged, once, into the file whose weights it changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..safety.paths import PathLike
from .motion_modules import is_motion_lora
from .motion_names import motion_diffusers_name
from .tensors import CheckpointError, TensorFile

_START = re.compile(r"(?:^|\.)((?:down_blocks|up_blocks|mid_block)\..*)")
_PART = re.compile(
    r"(?P<module>.+?)\.(?:processor\.)?(?P<weight>to_q|to_k|to_v|to_out)(?:\.0)?(?:_lora|\.lora)"
    r"(?:\.|_)(?P<side>down|up|A|B)\.weight"
)
_SIDES = {"down": "down", "A": "down", "up": "up", "B": "up"}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA, opened and not yet read. motion: of motion modules, in AnimateDiff's names; else of the image UNet, in
    diffusers'. pairs: weight -> names of its down and up tensors in the file."""

    path: Path
    motion: bool
    pairs: Mapping[str, tuple[str, str]]
    file: TensorFile

    @property
    def what(self) -> str:
        return "motion LoRA" if self.motion else "domain adapter (a LoRA on the image UNet)"

    def merged(self, weight: str, value: Tensor) -> Tensor:
        """The weight with its difference, where this file has one."""
        if weight not in self.pairs:
            return value
        down, up = (self.file.read(name).float() for name in self.pairs[weight])
        change = up.flatten(1) @ down.flatten(1)
        if change.numel() != value.numel():
            raise CheckpointError(
                f"{self.path} changes {weight} by {list(change.shape)} and it is {list(value.shape)}: "
                "this LoRA is for another model."
            )
        return (value.float() + change.view(value.shape)).to(value.dtype)


def is_lora(names: Mapping[str, object]) -> bool:
    """Whether tensors of these names are a LoRA of AnimateDiff's, for motion modules or the image UNet."""
    return any(_parsed(name) for name in names)


def read_lora(path: PathLike) -> LoraFile:
    """Open a motion LoRA or the v3 domain adapter. Raises CheckpointError for another file."""
    file = TensorFile(path)
    sides: dict[str, dict[str, str]] = {}
    for name in file.specs:
        if (found := _parsed(name)) is not None:
            weight, side = found
            sides.setdefault(weight, {})[side] = name
    if not sides:
        raise CheckpointError(
            f"{file.path} is no LoRA that is merged here: give a motion LoRA of AnimateDiff's or v3_sd15_adapter.ckpt."
        )
    half = [weight for weight, pair in sides.items() if pair.keys() != {"down", "up"}]
    if half:
        raise CheckpointError(f"{file.path} is a damaged LoRA: {half[0]} has one matrix of two.")
    motion = is_motion_lora(file.specs)
    naming: Callable[[str], str] = _animatediff if motion else str
    pairs = {naming(weight): (pair["down"], pair["up"]) for weight, pair in sides.items()}
    return LoraFile(file.path, motion, pairs, file)


def check_merges(lora: LoraFile, weights: Mapping[str, torch.Size | tuple[int, ...]], what: str) -> None:
    """Raise CheckpointError unless there is every weight that a LoRA changes; v2's middle one may be lacking."""
    lacking = [name for name in lora.pairs if name not in weights and not name.startswith("mid_block.motion_modules.")]
    if lacking:
        raise CheckpointError(
            f"{lora.path}, a {lora.what}, is not for this {what}, which has no {lacking[0]}: merge it into "
            f"{'a motion module' if lora.motion else 'a Stable Diffusion 1.5 checkpoint'} that it was made for."
        )


def _parsed(name: str) -> tuple[str, str] | None:
    """(weight, "down" or "up") of a LoRA's tensor."""
    start = _START.search(name)
    found = _PART.fullmatch(start[1]) if start else None
    if found is None:
        return None
    leaf = "to_out.0" if found["weight"] == "to_out" else found["weight"]
    return f"{found['module']}.{leaf}.weight", _SIDES[found["side"]]


def _animatediff(weight: str) -> str:
    return weight if ".temporal_transformer." in weight else motion_diffusers_name(weight, back=True)
