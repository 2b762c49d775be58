"""A base opened for work: UNet and encoders of a folder, of single files, or of the base that is embedded here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoints import BaseFiles, find_base, load_unet
from .defaults import Defaults, defaults_for
from .encoders import Encoders, check_matches, load_encoders
from .media_files import PathLike
from .sampling import choose_device, choose_dtype
from .unet import UNet

EMBEDDED_FOLDER = Path(__file__).parent / "nano" / "weights"


@dataclass(frozen=True, eq=False)
class Base:
    """What training and sampling need of a base, and where it came from. device, dtype: the UNet's."""

    unet: UNet
    encoders: Encoders
    files: BaseFiles
    embedded: bool
    device: torch.device
    dtype: torch.dtype

    @property
    def defaults(self) -> Defaults:
        """Size, length and training settings that suit this base."""
        return defaults_for(self.unet.config)


def open_base(
    folder: PathLike | None = None,
    *,
    unet: PathLike | None = None,
    clip: PathLike | None = None,
    vae: PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Base:
    """Load the base of a folder or of the files given (which go before the folder's); the embedded one without either.

    device, dtype: of the UNet, by default what suits the machine. The encoders lie on the same device, in float32.
    Raises ValueError when a part is missing or unusable, when parts do not go together, and for an unknown device.
    """
    embedded = not (folder or unet or clip or vae)
    files = find_base(EMBEDDED_FOLDER if embedded else folder, unet=unet, clip=clip, vae=vae)
    device = choose_device() if device is None else _device(device)
    dtype = dtype or choose_dtype(device)
    network = load_unet(files.unet, device=device, dtype=dtype)
    encoders = load_encoders(files, device)
    check_matches(network.config, encoders.text)
    return Base(network, encoders, files, embedded, device, dtype)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no device called {name!r}; there are cuda, mps and cpu.") from error
    usable = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not usable.get(device.type, False):
        raise ValueError(f"PyTorch finds no device {device} on this machine; take another or leave the choice to it.")
    return device
