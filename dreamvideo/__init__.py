"""DreamVideo: customise a text-to-video model with a subject and a motion (Wei et al., CVPR 2024, arXiv 2312.04433).

    import dreamvideo as dv

    base = dv.open_base("models/modelscope")
    photos = dv.load_images("photos/dog", (256, 256))
    dog = dv.train_subject(base, photos, placeholder="<my-dog>", class_word="dog", out="my-dog.safetensors").adapter
    video = dv.sample(base, "a <my-dog> on the grass", [dog])

Plain PyTorch and free of any host: the ComfyUI nodes and the command line are two faces of it. The names are those of
`library`, which is loaded, and PyTorch with it, when the first of them is asked for.
"""

# ruff: noqa: F403, F405

from __future__ import annotations

TYPE_CHECKING = False  # to a checker of types it is True; `typing` itself would double the time of this import

if TYPE_CHECKING:
    from .library import *

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterInfo",
    "AdapterStack",
    "Base",
    "DeltaConfig",
    "Encoders",
    "TrainedAdapter",
    "Outcome",
    "RegionPrompt",
    "Reports",
    "StackEntry",
    "UNet",
    "UNetConfig",
    "WeightDelta",
    "__version__",
    "build_adapter",
    "find_base",
    "find_clips",
    "load_adapter",
    "load_encoders",
    "load_images",
    "load_unet",
    "open_base",
    "part_of_video",
    "sample",
    "save_adapter",
    "train_motion",
    "train_subject",
    "write_video",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
