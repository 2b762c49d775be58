"""A base opened for work: UNet and encoders of a folder, of single files, or of the base that is embedded here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from .defaults import Defaults, defaults_for
from .devices import limit, total_bytes
from .encoders.loading import (
    StoredEncoders,
    check_matches,
    file_and_size,
    offload_encoders,
    open_encoders,
    read_encoders,
)
from .encoders.parking import park
from .encoders.protocols import Encoders
from .files.base import BaseFiles, find_base
from .files.fingerprint import fingerprint
from .files.unet import build_unet, read_unet
from .files.unet_file import UNetFile
from .media.folders import PathLike, Say, quiet
from .models.layers import economical
from .models.network import VideoUNet
from .placing import OFFLOADED, PARKED, Placement, place
from .safety.texts import quoted
from .sampling import choose_device, choose_dtype

EMBEDDED_FOLDER = Path(__file__).parent / "nano" / "weights"
IMAGE_FOLDER = "image"  # below the embedded base's, of the image base that shares its encoders


@dataclass(frozen=True, eq=False)
class Base:
    """The one handle for a loaded base: whoever holds it holds the networks that really run.

    device, dtype: where the UNet lies and what it computes in. files: where it came from; None where a host loaded it.
    parked: whether the encoders lie in main memory and visit the device for each call. offloaded: whether they lie in
    their files until they are needed. named: the fingerprint of the weights that adapters are named after, where others
    lie on them; the UNet's own by default.
    """

    unet: VideoUNet
    encoders: Encoders
    device: torch.device
    dtype: torch.dtype
    files: BaseFiles | None = None
    embedded: bool = False
    parked: bool = False
    offloaded: bool = False
    named: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights that adapters trained on this base are named after."""
        return self.named or fingerprint(self.unet)

    @property
    def defaults(self) -> Defaults:
        """Size, length and training settings that suit this base."""
        return defaults_for(self.unet.config)


def image_base_beside(files: BaseFiles) -> BaseFiles | None:
    """The files of the image base that lies beside the embedded base, or one trained again, or None."""
    folder = files.file("unet").parent / IMAGE_FOLDER
    return find_base(folder, clip=files.clip, vae=files.vae) if folder.is_dir() else None


@dataclass(frozen=True, eq=False)
class FoundBase:
    """The files of a base, looked at and not yet read: all parts are there, whole and go together."""

    files: BaseFiles
    unet: UNetFile
    encoders: StoredEncoders
    embedded: bool = False

    @property
    def defaults(self) -> Defaults:
        """As of `Base`."""
        return defaults_for(self.unet.config)


def look_at_base(
    folder: PathLike | None = None,
    *,
    unet: PathLike | None = None,
    clip: PathLike | None = None,
    vae: PathLike | None = None,
    motion_module: PathLike | None = None,
) -> FoundBase:
    """What `open_base` would load, in a moment. Raises ValueError as it does, but for weights that are no numbers."""
    embedded = not (folder or unet or clip or vae or motion_module)
    where = EMBEDDED_FOLDER if embedded else folder
    files = find_base(where, unet=unet, clip=clip, vae=vae, motion_module=motion_module)
    network = read_unet(files.file("unet"), motion_module=files.motion_module)
    found = FoundBase(files, network, open_encoders(files), embedded)
    check_matches(found.unet.config, found.encoders)
    return found


def open_base(
    folder: PathLike | None = None,
    *,
    unet: PathLike | None = None,
    clip: PathLike | None = None,
    vae: PathLike | None = None,
    motion_module: PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    encoder_dtype: torch.dtype | None = None,
    memory: float | None = None,
    say: Say = quiet,
    found: FoundBase | None = None,
) -> Base:
    """Load the base of a folder or of the files given (which go before the folder's); the embedded one without either.

    motion_module: of an image base, whose UNet is a Stable Diffusion 1.5 checkpoint.

    device, dtype: of the UNet, by default what suits the machine. The encoders compute on the same device. Where UNet
    and encoders would crowd it they lie in main memory, and where they would crowd that, in their files until they are
    needed. encoder_dtype: by default float32, on a CPU bfloat16 where float32 would not fit. memory: GiB that this
    process may take there (default: all). say: hears what memory is taken, and what is being read. found: what
    `look_at_base` gave for the same files.
    Raises ValueError, before anything is read, when a part is missing or another architecture, when parts do not go
    together, and for an unknown device; and for weights that are not numbers.
    """
    device = choose_device() if device is None else _device(device)
    dtype = dtype or choose_dtype(device)
    found = found or look_at_base(folder, unet=unet, clip=clip, vae=vae, motion_module=motion_module)
    if memory is not None:
        limit(device, memory)
    sizes = {name: part.parameters for name, part in found.encoders.parts.items()}
    plan = place(device, found.unet.parameters * dtype.itemsize, sizes, encoder_dtype, total_bytes(device, memory))
    say = quiet if found.embedded else say
    say(plan.reason)
    say(f"Loading the UNet ({file_and_size(found.unet.state)}) ...")
    if found.unet.motion is not None:
        say(f"Loading the motion module ({file_and_size(found.unet.motion.state)}) ...")
    network = build_unet(found.unet, device, dtype, economical(nn))
    encoders = _encoders(found.encoders, device, plan, say)
    parked, offloaded = plan.encoders == PARKED, plan.encoders == OFFLOADED
    return Base(network, encoders, device, dtype, found.files, found.embedded, parked, offloaded)


def _encoders(stored: StoredEncoders, device: torch.device, plan: Placement, say: Say) -> Encoders:
    if plan.encoders == OFFLOADED:
        return offload_encoders(stored, plan.encoder_dtype, say)
    if plan.encoders == PARKED:
        parked = park(read_encoders(stored, "cpu", plan.encoder_dtype, say), device)
        return replace(parked, fingerprint=stored.fingerprint(device, plan.encoder_dtype))
    return read_encoders(stored, device, plan.encoder_dtype, say)


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
