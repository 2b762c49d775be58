"""Where a base's parts lie, decided from their sizes before any is read, and what people are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .devices import GIB, SPARE, crowded

RESIDENT, PARKED, OFFLOADED = "resident", "parked", "offloaded"


@dataclass(frozen=True)
class Placement:
    """encoders: on the UNet's device, parked in main memory or offloaded to their files. reason: for people."""

    encoders: str
    encoder_dtype: torch.dtype
    reason: str


def place(
    device: torch.device,
    unet: int,
    encoders: Mapping[str, int],
    encoder_dtype: torch.dtype | None,
    total: int,
) -> Placement:
    """What suits a device of which this process can take `total` bytes.

    unet: its bytes. encoders: name -> parameters. encoder_dtype: None chooses. On a CPU encoders that would crowd it
    are offloaded, and one at a time is beside the UNet; in bfloat16 where float32 would not fit.
    """
    count, largest = sum(encoders.values()), max(encoders.values())
    dtype = encoder_dtype or torch.float32
    room = device.type == "cpu" and crowded(unet + count * dtype.itemsize, total)
    if encoder_dtype is None and room and unet + largest * dtype.itemsize > SPARE * total:
        dtype = torch.bfloat16
    whole = count * dtype.itemsize
    told = f"The UNet takes {_gib(unet)} and the encoders {_gib(whole)} in {str(dtype).removeprefix('torch.')}"
    told += f", of {_gib(total)} that there are on {device.type}"
    if not crowded(unet + whole, total):
        return Placement(RESIDENT, dtype, f"{told}.")
    if device.type != "cpu":
        return Placement(PARKED, dtype, f"{told}: the encoders lie in main memory and visit the device when asked.")
    most = unet + largest * dtype.itemsize
    told += f": the encoders are read when they are needed and let go again, so that both take {_gib(most)} at most."
    if most > SPARE * total:
        told += " That may not fit: --dtype bfloat16 halves the UNet, --encoder-dtype bfloat16 the encoders."
    return Placement(OFFLOADED, dtype, told)


def _gib(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB"
