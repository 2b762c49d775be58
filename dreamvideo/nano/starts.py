"""The image base that lies beside an embedded base, which some systems of the comparison start from."""

from __future__ import annotations

from functools import lru_cache

from ..base import Base, open_base
from .comparison import WITH_MODULE
from .package import IMAGE


@lru_cache(maxsize=2)
def image_base(base: Base, start: str) -> Base:
    """The image base beside a video base, for "pictures" without its motion module; it reads that base's text states.

    Raises ValueError where there is none.
    """
    files = base.files
    folder = None if files is None else files.file("unet").parent / IMAGE
    if files is None or folder is None or not folder.is_dir():
        raise ValueError(
            f"The base has no folder {IMAGE} with an image base, which AnimateDiff and Tune-A-Video start from: train "
            "one (dreamvideo nano train), or choose other tables with --table."
        )
    return open_base(
        unet=folder / "unet.safetensors",
        motion_module=folder / "motion_module.safetensors" if start == WITH_MODULE else None,
        clip=files.clip,
        vae=files.vae,
        device=base.device,
        dtype=base.dtype,
    )
