"""A checkpoint of Stable Diffusion 1.5 as a base's UNet, with a motion module or without."""

from __future__ import annotations

from dataclasses import replace

from ..models.image_config import ImageUNetConfig
from .image_layouts import WAY_OUT, check_family, find_image_layout, image_diffusers_name, infer_image_config
from .layouts import original_shapes
from .motion_modules import MotionFile, checked, with_motion
from .tensors import CheckpointError, TensorFile
from .unet_file import UNetFile, given_config, whole_state


def read_image_unet(file: TensorFile, motion: MotionFile | None = None) -> UNetFile:
    """The image UNet of an opened file that holds one, in any layout, prefix and container.

    The config is read from safetensors metadata ("unet_config", JSON) or inferred from names and shapes. motion: the
    motion module to run with it. Raises CheckpointError for another family of UNets, for a UNet that is not whole, and
    for a motion module that is for another image model.
    """
    found = find_image_layout(file.specs)
    assert found is not None
    layout, prefix = found
    stored = {name.removeprefix(prefix): name for name in file.specs if name.startswith(prefix)}
    shapes = {name: file.specs[old].shape for name, old in stored.items()}
    try:
        check_family(shapes, layout)
        config = given_config(file) or infer_image_config(shapes, layout)
        if not isinstance(config, ImageUNetConfig):
            raise CheckpointError("its metadata tell of a UNet of another family than its tensors")
        config = replace(config, motion_frames=None, motion_middle=False, norm_across_frames=False)
        wanted = original_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"{file.path} is not a UNet this program runs: {str(error).rstrip('.')}.") from error
    rename = (lambda name: image_diffusers_name(name, config.res_blocks)) if layout == "diffusers" else str
    names = {name: rename(name) for name in wanted}
    stranger = f"Stable Diffusion 1.5's UNet has not ({{}}): {WAY_OUT}"
    state, notes = whole_state(file, prefix, stored, names, wanted, stranger)
    if motion is None:
        return UNetFile(file.path, layout, config, state, notes)
    config = with_motion(config, motion)
    return UNetFile(file.path, layout, config, state, notes, checked(config, motion))
