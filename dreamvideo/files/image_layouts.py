"""Names and shapes of the image UNet's tensors in every layout in circulation, and the architecture they imply.

Canonical are the names of Stable Diffusion 1's checkpoints, without their prefix; other layouts are renamings of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..models.image_config import MOTION, ImageUNetConfig
from .layouts import Shape, depth, diffusers_name, plain_name
from .motion_names import motion_diffusers_name
from .tensors import CheckpointError

# Tensors of a whole UNet; a ControlNet has the first of each pair alone. What precedes both is the prefix of the file.
IMAGE_ANCHORS = {
    "original": ("input_blocks.1.0.in_layers.0.weight", "output_blocks.0.0.in_layers.0.weight"),
    "diffusers": ("down_blocks.0.resnets.0.norm1.weight", "up_blocks.0.resnets.0.time_emb_proj.weight"),
}
CHECKPOINT_PREFIX = "model.diffusion_model."  # of Stable Diffusion's own files
HEADS = 8  # of every attention of Stable Diffusion 1; no shape tells
SD2_CONTEXT = 1024
WAY_OUT = "take a checkpoint of Stable Diffusion 1.5, or of a model fine-tuned from it"

# UNets of other families with these names: a pattern among the names without prefix, what it is.
_OTHERS = (
    ("a Stable Video Diffusion UNet", r"time_stack|time_mixer|spatial_res_block"),
    ("a Stable Diffusion XL UNet", r"^label_emb\.|^add_embedding\.|\.transformer_blocks\.[1-9]\d*\."),
    ("a UNet that holds motion modules already", r"motion_modules\."),
    ("a text-to-video UNet of another family", r"temp_attentions|temp_convs|temopral_conv"),
)


def find_image_layout(names: Iterable[str]) -> tuple[str, str] | None:
    """(layout, prefix) of an image UNet among these tensor names, or None. Weights go before their moving averages."""
    names = set(names)
    found = [
        ("ema" in name, len(name), layout, prefix)
        for layout, (first, second) in IMAGE_ANCHORS.items()
        for name in names
        if (name == first or name.endswith("." + first)) and (prefix := name.removesuffix(first)) + second in names
    ]
    return min(found)[2:] if found else None


def is_averages_alone(names: Iterable[str]) -> bool:
    """Whether a Stable Diffusion checkpoint keeps moving averages of the weights, under their mangled names, alone."""
    return any(name.startswith("model_ema.diffusion_model") for name in names)


def check_family(stored: Mapping[str, Shape], layout: str) -> None:
    """Raise CheckpointError, saying what it is, for an image UNet that is not Stable Diffusion 1's. No prefixes."""
    for what, pattern in _OTHERS:
        if any(re.search(pattern, name) for name in stored):
            raise CheckpointError(f"it is {what}: {WAY_OUT}")
    first = stored.get("input_blocks.0.0.weight" if layout == "original" else "conv_in.weight", ())
    if len(first) == 4 and first[1] != 4:
        kind = {9: "inpainting", 8: "instruction-editing"}.get(first[1], "special")
        raise CheckpointError(f"it is an {kind} UNet with {first[1]} input channels and 4 are needed: {WAY_OUT}")
    flat = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in stored.items())
    reads = {shape[1] for name, shape in stored.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2}
    if flat or (first[:1] == (320,) and SD2_CONTEXT in reads):
        raise CheckpointError(f"it is a Stable Diffusion 2 UNet, whose heads and text states are others: {WAY_OUT}")


def image_diffusers_name(name: str, res_blocks: int) -> str:
    """The name in diffusers' UNetMotionModel (or UNet2DConditionModel, or MotionAdapter) of a tensor of ours."""
    if name.startswith(f"{MOTION}."):
        return motion_diffusers_name(name.removeprefix(f"{MOTION}."))
    # The video UNet's middle has a temporal transformer more, and so its last residual block one place further.
    return diffusers_name(re.sub(r"^middle_block\.2\.", "middle_block.3.", plain_name(name)), res_blocks)


def infer_image_config(shapes: Mapping[str, Shape], layout: str) -> ImageUNetConfig:
    """The architecture implied by names and shapes (both without prefix, in `layout`), with Stable Diffusion's heads.

    Raises CheckpointError when the tensors are not this family's.
    """
    levels, res_blocks = depth({plain_name(name): shape for name, shape in shapes.items()}, layout)

    def stored(name: str) -> str:
        return name if layout == "original" else image_diffusers_name(name, res_blocks)

    def shape(name: str) -> Shape:
        found = shapes.get(stored(name))
        if found is None:
            raise CheckpointError(f"it has no {stored(name)}, which every UNet of this family has")
        if len(found) < 2 or 0 in found:
            raise CheckpointError(f"its {stored(name)} has shape {list(found)}, which no weight has")
        return found

    first = [level * (res_blocks + 1) + 1 for level in range(levels)]
    dim, in_channels = shape("input_blocks.0.0.weight")[:2]
    channels = [shape(f"input_blocks.{index}.0.in_layers.2.weight")[0] for index in first]
    if any(width % dim for width in channels):
        raise CheckpointError(f"the channels of its levels, {channels}, are not multiples of the first {dim}")
    return ImageUNetConfig(
        in_channels=in_channels,
        out_channels=shape("out.2.weight")[0],
        dim=dim,
        dim_mult=tuple(width // dim for width in channels),
        res_blocks=res_blocks,
        attention_levels=tuple(stored(f"input_blocks.{index}.1.proj_in.weight") in shapes for index in first),
        heads=HEADS,
        context_dim=shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
    )
