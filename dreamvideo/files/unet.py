"""A UNet checkpoint of any family and layout -> config and state in the original names -> UNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ..models.blocks import AttentionFunction
from ..models.config import UNetConfig
from ..models.families import build_network
from ..models.network import VideoUNet
from ..safety.paths import PathLike
from .dtypes import readable
from .image_layouts import find_image_layout
from .image_unet import read_image_unet
from .kinds import refuse_averages
from .layouts import (
    diffusers_name,
    find_layout,
    infer_config,
    name_relative,
    name_stranger,
    original_shapes,
    plain_name,
)
from .motion_modules import read_motion_module
from .tensors import CheckpointError, TensorFile
from .unet_file import UNetFile, given_config, whole_state


def read_unet(path: PathLike, *, head_dim: int | None = None, motion_module: PathLike | None = None) -> UNetFile:
    """Open the checkpoint file of a UNet in any layout, prefix and container: ModelScope's, or Stable Diffusion 1.5's.

    motion_module: the file of the motion module that an image UNet runs with. The config is read from safetensors
    metadata ("unet_config", JSON) or inferred from names and shapes; `head_dim` is the width of an attention head where
    neither tells (see `infer_config`). A related refiner (MS-Vid2Vid, "SR600") has the same names and shapes and cannot
    be told apart.
    Raises CheckpointError when the file is unusable, another architecture, or lacks tensors.
    """
    file = TensorFile(path)
    found = find_layout(file.specs)
    if found is None and find_image_layout(file.specs) is not None:
        return read_image_unet(file, None if motion_module is None else read_motion_module(motion_module))
    refuse_averages(file)
    if found is None:
        raise CheckpointError(
            f"{file.path} is {name_stranger(file.specs)}, not a ModelScope text-to-video UNet or one of Stable "
            "Diffusion 1.5."
        )
    if motion_module is not None:
        raise CheckpointError(
            f"{file.path} is a ModelScope text-to-video UNet, which has temporal layers of its own: leave the motion "
            "module out, or give a Stable Diffusion 1.5 checkpoint as the UNet."
        )
    layout, prefix = found
    stored = {plain_name(name.removeprefix(prefix)): name for name in file.specs if name.startswith(prefix)}
    shapes = {name: file.specs[old].shape for name, old in stored.items()}
    relative = name_relative(stored, shapes)
    if relative:
        raise CheckpointError(f"{file.path} is {relative}, not a ModelScope text-to-video UNet.")
    try:
        config = _modelscope_config(file) or infer_config(shapes, layout, head_dim)
        wanted = original_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"{file.path} is not a UNet this program runs: {str(error).rstrip('.')}.") from error
    rename = (lambda name: diffusers_name(name, config.res_blocks)) if layout == "diffusers" else str
    names = {name: rename(name) for name in wanted}
    stranger = "a ModelScope text-to-video UNet has not ({}): it is another architecture"
    state, notes = whole_state(file, prefix, stored, names, wanted, stranger)
    return UNetFile(file.path, "vgen" if file.wrapped and layout == "original" else layout, config, state, notes)


def load_unet(
    path: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    head_dim: int | None = None,
    motion_module: PathLike | None = None,
    operations: Any = nn,
    attention: AttentionFunction = scaled_dot_product_attention,
) -> VideoUNet:
    """The UNet of a checkpoint file, frozen and in eval mode. dtype: None for the file's own (8-bit: float16).

    Weights are held once: each tensor is read, cast and moved by itself into a UNet that had none.
    Raises CheckpointError as `read_unet` does, and when there are NaN or infinite weights.
    """
    found = read_unet(path, head_dim=head_dim, motion_module=motion_module)
    return build_unet(found, device, dtype, operations, attention)


def build_unet(
    found: UNetFile,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = nn,
    attention: AttentionFunction = scaled_dot_product_attention,
) -> VideoUNet:
    """As `load_unet`, of a file that was opened already."""
    dtype = dtype or readable(found.dtype)
    unet = build_network(found.config, operations=operations, attention=attention, device="meta", dtype=dtype)
    unet.load_state_dict(dict(found.stream(device, dtype)), assign=True)
    return unet.eval().requires_grad_(False)


def _modelscope_config(file: TensorFile) -> UNetConfig | None:
    config = given_config(file)
    if config is not None and not isinstance(config, UNetConfig):
        raise CheckpointError("its metadata tell of a UNet of another family than its tensors")
    return config
