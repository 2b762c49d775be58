"""The image base that lies beside an embedded base, which some systems of the comparison start from."""

from __future__ import annotations

from functools import lru_cache

from ..base import IMAGE_FOLDER, Base, image_base_beside, open_base
from .comparison import WITH_MODULE


@lru_cache(maxsize=2)
def image_base(base: Base, start: str) -> Base:
    """The image base beside a video base, for "pictures" without its motion module; it reads that base's text states.

    Raises ValueError where there is none.
    """
    files = None if base.files is None else image_base_beside(base.files)
    if files is None:
        raise ValueError(
            f"The base has no folder {IMAGE_FOLDER} with an image base, which AnimateDiff and Tune-A-Video start from: "
            "train one (dreamvideo nano train), or choose other tables with --table."
        )
    return open_base(
        unet=files.unet,
        motion_module=files.motion_module if start == WITH_MODULE else None,
        clip=files.clip,
        vae=files.vae,
        device=base.device,
        dtype=base.dtype,
    )
