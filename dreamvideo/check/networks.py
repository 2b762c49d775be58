"""Where a network's tensors lie, where its layers run, and whether its weights stay what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..defaults import FULL_SIZE, Defaults, defaults_for
from ..encoders.protocols import Encoders
from ..files.adapter_info import TrainedAdapter
from ..models.config import NetworkConfig, UNetConfig
from ..models.network import VideoUNet
from ..nano.denoiser import CONFIG as EMBEDDED_CONFIG
from ..sampling import LATENT_FACTOR
from .measure import dtype_name, gib
from .report import Finding

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes a number
Place = tuple[torch.device, torch.dtype]


class Handle(Protocol):
    """What a check needs of a base; `base.Base` has it, and what it has beyond that is told.

    device, dtype: where and in what the UNet should compute.
    """

    @property
    def unet(self) -> VideoUNet: ...

    @property
    def encoders(self) -> Encoders: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


@dataclass
class Session:
    """What the sections of a check share: the base, and what was trained on it so far, by its kind.

    networks: the modules to look into, by name, the UNet's "UNet". paged: a host moves weights by itself, so where
    they lie is told and not judged. memory: GiB that a training step may take, None for what is free.
    seconds: for the steps of one training or sampling.
    """

    base: Handle
    networks: Mapping[str, nn.Module]
    paged: bool
    memory: float | None
    seconds: float
    trained: dict[str, TrainedAdapter] = field(default_factory=dict)

    @property
    def defaults(self) -> Defaults:
        return defaults_for(self.base.unet.config)

    @property
    def small(self) -> bool:
        """Whether to measure at the smallest size and length: a wide base on a CPU."""
        return self.base.device.type == "cpu" and self.defaults is FULL_SIZE

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of what is trained on and sampled."""
        unit = LATENT_FACTOR * self.base.unet.config.stride
        return (unit, unit) if self.small else (self.defaults.height, self.defaults.width)


def own_networks(base: Handle) -> dict[str, nn.Module]:
    """The modules of a base that the engine loaded itself."""
    encoders = base.encoders
    text, image = (getattr(encoder, "clip", None) for encoder in (encoders.text, encoders.image))
    found = {"UNet": base.unet, "CLIP": text, "VAE": getattr(encoders.vae, "vae", None)}
    if image is not text:
        found["image encoder"] = image
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def describe(session: Session) -> Iterator[Finding]:
    """What the base is, and of every network where its tensors lie and whether they are numbers."""
    base = session.base
    config = base.unet.config
    known: dict[NetworkConfig, str] = {UNetConfig(): "ModelScope 1.7B", EMBEDDED_CONFIG: "the embedded base"}
    size = f"{config.dim} channels, levels {config.dim_mult}, text of width {config.context_dim}"
    yield Finding("architecture", f"{known.get(config, 'another')}: {size}")
    files = getattr(base, "files", None)
    if files is not None:
        yield Finding("files", ", ".join(path.name for path in files.present.values()))
    yield Finding("computes", f"on {base.device} in {dtype_name(base.unet.dtype)}")
    if getattr(base, "parked", False):
        yield Finding("encoders", "lie in main memory and visit the device")
    offloaded = getattr(base, "offloaded", False)
    if offloaded:
        yield Finding("encoders", "lie in their files until they are needed")
    for name, module in session.networks.items():
        if offloaded and name != "UNet":
            continue
        yield _placed(name, module, session)
        broken = not_finite(module)
        if broken:
            advice = "These weights are no numbers: the file is damaged, or its precision too low; load another one."
            yield Finding(f"{name}'s weights", f"{some(broken)} hold NaN or infinity", advice)


def _placed(name: str, module: nn.Module, session: Session) -> Finding:
    places = {key: (tensor.device, tensor.dtype) for key, tensor in module.named_parameters()}
    tensors = list(module.parameters())
    numbers = sum(tensor.numel() for tensor in tensors)
    held = gib(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    text = f"{len(tensors):,} tensors, {numbers:,} numbers, {held}: {told(places)}"
    advice = ""
    if len(set(places.values())) > 1:
        usual = Counter(places.values()).most_common(1)[0][0]
        odd = [key for key, place in places.items() if place != usual]
        advice = f"{some(odd)} of it were left behind: load the base again, and tell what was done before."
    elif name == "UNet" and any(not same_device(device, session.base.device) for device, _ in places.values()):
        advice = f"The UNet does not lie on {session.base.device}, where it should compute: load the base again."
    return Finding(name, text, "" if session.paged else advice)


def told(places: Mapping[str, Place]) -> str:
    """E.g. "all on cuda:0 in float16", "1,410 on cuda:0 in float16, 3 on cpu in float16"."""
    counts = Counter(places.values()).most_common()
    whole = len(counts) == 1
    return ", ".join(
        f"{'all' if whole else f'{count:,}'} on {device} in {dtype_name(dtype)}" for (device, dtype), count in counts
    )


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two names mean the same: "cuda" is any of the cards."""
    return one == other or (one.type == other.type and None in (one.index, other.index))


@contextmanager
def observed(networks: Mapping[str, nn.Module]) -> Iterator[dict[str, dict[str, Place]]]:
    """Network -> layer -> where and in what its last result was, of all layers that run inside."""
    seen: dict[str, dict[str, Place]] = {name: {} for name in networks}
    hooks = []
    for name, module in networks.items():
        for layer, part in module.named_modules():
            if part._parameters:  # a host's layer has the names of its weights there, be they loaded or not
                hooks.append(part.register_forward_hook(_note(seen[name], layer)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _note(seen: dict[str, Place], layer: str) -> Callable[[nn.Module, Any, Any], None]:
    def note(part: nn.Module, given: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor):
            seen[layer] = (out.device, out.dtype)

    return note


def checksums(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """A sum over the bits of every weight, modulo 2^64: exact whatever they hold."""
    return {
        f"{name}.{key}": int(_bits(tensor).sum(dtype=torch.int64))
        for name, module in networks.items()
        for key, tensor in module.named_parameters()
        if not tensor.is_meta
    }


def _bits(tensor: Tensor) -> Tensor:
    """As integers, of eight bytes where they come out even: a CPU sums those several times faster."""
    flat = tensor.detach().reshape(-1)
    size = flat.element_size()
    even = not (flat.numel() * size % 8 or flat.storage_offset() * size % 8)
    return flat.view(torch.int64 if even else BITS[size])


def not_finite(module: nn.Module) -> list[str]:
    """Names of the weights that hold NaN or infinity."""
    with torch.no_grad():
        sums = {key: tensor.float().sum() for key, tensor in module.named_parameters() if not tensor.is_meta}
    return [key for key, value in sums.items() if not value.isfinite()]


def some(names: Sequence[str]) -> str:
    """How many there are, at least one, and the first of them."""
    return f"{len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})"
