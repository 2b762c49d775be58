"""DreamVideo: customise a text-to-video model with a subject and a motion (Wei et al., CVPR 2024, arXiv 2312.04433).

    import dreamvideo as dv

    base = dv.open_base("models/modelscope")
    photos = dv.load_images("photos/dog", (256, 256))
    dog = dv.train_subject(base, photos, placeholder="<my-dog>", class_word="dog", out="my-dog.safetensors").adapter
    video = dv.sample(base, "a <my-dog> on the grass", [dog])

Plain PyTorch and free of any host: the ComfyUI nodes and the command line are two faces of it. A name is loaded
when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .base import Base as Base
    from .base import open_base as open_base
    from .encoders.loading import load_encoders as load_encoders
    from .encoders.protocols import Encoders as Encoders
    from .files.adapter_info import AdapterInfo as AdapterInfo
    from .files.adapter_info import LoadedAdapter as LoadedAdapter
    from .files.adapters import load_adapter as load_adapter
    from .files.adapters import save_adapter as save_adapter
    from .files.base import find_base as find_base
    from .files.unet import load_unet as load_unet
    from .media.clips import find_clips as find_clips
    from .media.photographs import load_images as load_images
    from .media.writing import write_video as write_video
    from .models.adapters import Adapter as Adapter
    from .models.adapters import AdapterConfig as AdapterConfig
    from .models.adapters import build_adapter as build_adapter
    from .models.config import UNetConfig as UNetConfig
    from .models.deltas import DeltaConfig as DeltaConfig
    from .models.deltas import WeightDelta as WeightDelta
    from .models.stack import AdapterStack as AdapterStack
    from .models.stack import StackEntry as StackEntry
    from .models.unet import UNet as UNet
    from .runs import Outcome as Outcome
    from .runs import Reports as Reports
    from .runs import sample as sample
    from .runs import train_motion as train_motion
    from .runs import train_subject as train_subject

_HOMES = {
    "base": ("Base", "open_base"),
    "encoders.loading": ("load_encoders",),
    "encoders.protocols": ("Encoders",),
    "files.adapter_info": ("AdapterInfo", "LoadedAdapter"),
    "files.adapters": ("load_adapter", "save_adapter"),
    "files.base": ("find_base",),
    "files.unet": ("load_unet",),
    "models.adapters": ("Adapter", "AdapterConfig", "build_adapter"),
    "models.config": ("UNetConfig",),
    "models.deltas": ("DeltaConfig", "WeightDelta"),
    "models.stack": ("AdapterStack", "StackEntry"),
    "models.unet": ("UNet",),
    "media.clips": ("find_clips",),
    "media.photographs": ("load_images",),
    "media.writing": ("write_video",),
    "runs": ("Outcome", "Reports", "sample", "train_motion", "train_subject"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
