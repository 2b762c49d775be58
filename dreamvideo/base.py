"""A base opened for work: UNet and encoders of a folder, of single files, or of the base that is embedded here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from .defaults import Defaults, defaults_for
from .devices import crowded, limit, total_bytes
from .encoders.loading import check_matches, load_encoders
from .encoders.parking import networks_of, park
from .encoders.protocols import Encoders
from .files.base import BaseFiles, find_base
from .files.fingerprint import fingerprint
from .files.unet import load_unet
from .models.layers import economical
from .models.unet import UNet
from .safety.paths import PathLike
from .safety.texts import quoted
from .sampling import choose_device, choose_dtype

EMBEDDED_FOLDER = Path(__file__).parent / "nano" / "weights"


@dataclass(frozen=True, eq=False)
class Base:
    """The one handle for a loaded base: whoever holds it holds the networks that really run.

    device, dtype: where the UNet lies and what it computes in. files: where it came from; None where a host loaded it.
    parked: whether the encoders lie in main memory and visit the device for each call. named: the fingerprint of the
    weights that adapters are named after, where others lie on them; the UNet's own by default.
    """

    unet: UNet
    encoders: Encoders
    device: torch.device
    dtype: torch.dtype
    files: BaseFiles | None = None
    embedded: bool = False
    parked: bool = False
    named: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights that adapters trained on this base are named after."""
        return self.named or fingerprint(self.unet)

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
    memory: float | None = None,
) -> Base:
    """Load the base of a folder or of the files given (which go before the folder's); the embedded one without either.

    device, dtype: of the UNet, by default what suits the machine. The encoders are in float32, on the same device or,
    where UNet and encoders would crowd it, in main memory. memory: GiB that this process may take there (default: all).
    Raises ValueError when a part is missing or unusable, when parts do not go together, and for an unknown device.
    """
    embedded = not (folder or unet or clip or vae)
    files = find_base(EMBEDDED_FOLDER if embedded else folder, unet=unet, clip=clip, vae=vae)
    device = choose_device() if device is None else _device(device)
    dtype = dtype or choose_dtype(device)
    if memory is not None:
        limit(device, memory)
    total = None if device.type == "cpu" else total_bytes(device, memory)
    network = load_unet(files.file("unet"), device=device, dtype=dtype, operations=economical(nn))
    encoders = load_encoders(files, "cpu" if total is not None else device)
    check_matches(network.config, encoders.text)
    clip_network, vae_network = networks_of(encoders)
    parked = crowded(_bytes(network) + _bytes(clip_network) + _bytes(vae_network), total)
    if parked:
        encoders = park(encoders, device)
    elif total is not None:
        clip_network.to(device)
        vae_network.to(device)
    return Base(network, encoders, device, dtype, files, embedded, parked)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _device(name: str | torch.device) -> torch.device:
    """The device of that name; of a cuda card with its index, which not every call of PyTorch can do without."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no device called {quoted(name)}; there are cuda, mps and cpu.") from error
    usable = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not usable.get(device.type, False):
        raise ValueError(f"PyTorch finds no device {device} on this machine; take another or leave the choice to it.")
    unnumbered = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if unnumbered else device
