"""Which parts of a base a file holds, told by the names of its tensors."""

from __future__ import annotations

from ..safety.paths import PathLike
from .encoders import find_clip, find_vae
from .image_encoders import find_image
from .image_layouts import check_family, find_image_layout, is_averages_alone
from .layouts import find_layout
from .motion_modules import is_motion_module
from .tensors import CheckpointError, TensorFile
from .text_encoders import find_text


def kinds_of(file: TensorFile) -> list[str]:
    """Which of "unet" (ModelScope's), "image unet", "motion_module", "vae" and "clip" a file holds.

    Of CLIP "clip" is open_clip's file with both towers; "text" and "vision" are one tower in transformers' names.
    """
    found = []
    if find_layout(file.specs) is not None:
        found.append("unet")
    elif _is_image_unet(file):
        found.append("image unet")
    elif is_motion_module(file.specs):
        found.append("motion_module")
    finders = {"clip": find_clip, "vae": find_vae, "text": find_text, "vision": find_image}
    return found + [part for part, find in finders.items() if find(file.specs) is not None]


def kinds_or_none(path: PathLike) -> list[str]:
    """As `kinds_of`: nothing of a file that is no checkpoint."""
    try:
        return kinds_of(TensorFile(path))
    except CheckpointError:
        return []  # a neighbour that is no checkpoint is no reason to refuse the folder


def refuse_other_unet(path: PathLike) -> None:
    """Raise CheckpointError, saying what it is, for a file with an image UNet that no base here can have."""
    try:
        file = TensorFile(path)
    except CheckpointError:
        return
    refuse_averages(file)
    layout = find_image_layout(file.specs)
    if layout is not None:
        try:
            check_family(_without(file, layout[1]), layout[0])
        except CheckpointError as error:
            raise CheckpointError(f"{file.path} is not a UNet this program runs: {error}.") from error


def refuse_averages(file: TensorFile) -> None:
    """Raise CheckpointError for a checkpoint that keeps moving averages alone."""
    if find_image_layout(file.specs) is None and is_averages_alone(file.specs):
        raise CheckpointError(
            f"{file.path} holds moving averages of the weights (EMA) under their training names and no UNet: "
            "take the checkpoint with the weights themselves."
        )


def _without(file: TensorFile, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): spec.shape for name, spec in file.specs.items() if name.startswith(prefix)}


def _is_image_unet(file: TensorFile) -> bool:
    """Whether there is one of the family that runs here."""
    layout = find_image_layout(file.specs)
    if layout is None:
        return False
    try:
        check_family(_without(file, layout[1]), layout[0])
    except CheckpointError:
        return False
    return True
