"""DreamVideo: customise a text-to-video model with a subject and a motion (Wei et al., CVPR 2024, arXiv 2312.04433).

    import dreamvideo as dv

    base = dv.open_base("models/modelscope")
    adapter = dv.load_adapter("my-dog.safetensors")

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
    from .models.adapters import Adapter as Adapter
    from .models.adapters import AdapterConfig as AdapterConfig
    from .models.adapters import build_adapter as build_adapter
    from .models.config import UNetConfig as UNetConfig
    from .models.deltas import DeltaConfig as DeltaConfig
    from .models.deltas import WeightDelta as WeightDelta
    from .models.stack import AdapterStack as AdapterStack
    from .models.stack import StackEntry as StackEntry
    from .models.unet import UNet as UNet

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
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
