"""Bases by what names them, so that any process can open them; a process keeps the one that it has open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..base import Base, FoundBase, look_at_base, open_base
from ..devices import GIB

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BaseSpec:
    """A base as the command line's options name it; the embedded one without folder and files."""

    name: str = "embedded"
    folder: str | None = None
    unet: str | None = None
    clip: str | None = None
    vae: str | None = None
    motion_module: str | None = None
    device: str | None = None
    dtype: str | None = None
    encoder_dtype: str | None = None
    memory: float | None = None

    def look(self) -> FoundBase:
        """Its files, in a moment. Raises ValueError as `look_at_base` does."""
        return look_at_base(self.folder, unet=self.unet, clip=self.clip, vae=self.vae, motion_module=self.motion_module)

    def open(self, say: Callable[[str], None]) -> Base:
        return open_base(
            self.folder,
            unet=self.unet,
            clip=self.clip,
            vae=self.vae,
            motion_module=self.motion_module,
            device=self.device,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            encoder_dtype=None if self.encoder_dtype is None else getattr(torch, self.encoder_dtype),
            memory=self.memory,
            say=say,
        )


class OpenBase:
    """Opens bases and keeps the last one, so that a process that does many jobs reads the weights once."""

    def __init__(self, base: Base | None = None, spec: BaseSpec | None = None) -> None:
        self.spec, self.base = spec, base

    def __call__(self, spec: BaseSpec, say: Callable[[str], None] = lambda text: None) -> Base:
        if self.base is None or self.spec != spec:
            self.spec, self.base = None, None  # before the next one takes its room
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.spec, self.base = spec, spec.open(say)
        return self.base

    def on(self, device: str | None, share: float) -> Callable[[BaseSpec], Base]:
        """As this, on a device of which this process has a share: 1 for all of it. device: None for the base's own."""
        return partial(self._placed, device, share)

    def _placed(self, device: str | None, share: float, spec: BaseSpec) -> Base:
        if device is not None and spec.device is None:
            spec = replace(spec, device=device)
        if spec.memory is None and 0 < share < 1 and spec.device and spec.device.startswith("cuda"):
            whole = torch.cuda.mem_get_info(torch.device(spec.device))[1]
            spec = replace(spec, memory=share * whole / GIB)
        return self(spec)
