"""Weight deltas: what fine-tuning changes of a UNet's own weights, kept as differences beside the untouched base.

A `WeightDelta` holds one difference per changed weight, dense or of low rank (LoRA, Hu et al., arXiv 2106.09685). It
travels in an `AdapterStack` like a bottleneck adapter. There is one merge: W + sum of strength_i * delta_i, computed
for a call of the UNet into an `overlay`, a UNet of its own that shares with the base everything that does not change.
So deltas add up with each other and with adapters, and neither the base nor a thread beside it sees anything of them.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..safety.limits import MOST_CHANNELS, short, whole
from .config import NetworkConfig, Stored, transformer_sites
from .families import build_network
from .network import VideoUNet

Module = TypeVar("Module", bound=nn.Module)

TEMPORAL_CONV = ".temopral_conv."
KEYS_AND_VALUES = (".to_k.weight", ".to_v.weight")

# Group of weights -> whether a weight belongs to it, by its name and whether it mixes frames. The time embedding, which
# both halves share, is in none, as in the authors' list of spatial weights.
WEIGHT_GROUPS: Mapping[str, Callable[[str, bool], bool]] = {
    "spatial": lambda name, temporal: not temporal and not name.startswith("time_embed."),
    "temporal": lambda name, temporal: temporal,
    "queries": lambda name, temporal: not temporal and name.endswith(".to_q.weight"),
    "text_kv": lambda name, temporal: not temporal and ".attn2." in name and name.endswith(KEYS_AND_VALUES),
    "temporal_kv": lambda name, temporal: temporal and name.endswith(KEYS_AND_VALUES),
}


@dataclass(frozen=True)
class DeltaConfig(Stored):
    """Which weights change, and how.

    weights: any of `WEIGHT_GROUPS`: "spatial" (all of the image half), "temporal" (temporal transformers and
    convolutions, or motion modules), "queries" (of the image half's attention), "text_kv" (keys and values of the
    text's cross-attention), "temporal_kv" (keys and values of every attention over time).
    rank: of the differences, None for dense ones. Needs groups of matrices alone.
    """

    weights: tuple[str, ...]
    rank: int | None = None

    kind: ClassVar[str] = "weights"
    condition_dim: ClassVar[None] = None  # no image feature reaches a weight

    def __post_init__(self) -> None:
        known = isinstance(self.weights, tuple) and [name for name in WEIGHT_GROUPS if name in self.weights]
        if not known or len(known) != len(self.weights):
            raise ValueError(f"Weight deltas change any of {', '.join(WEIGHT_GROUPS)}, not {short(self.weights)}.")
        if self.rank is not None:
            whole("The rank of weight deltas, where there is one,", self.rank, MOST_CHANNELS)


@functools.lru_cache(maxsize=8)
def weight_shapes(unet_config: NetworkConfig, groups: tuple[str, ...]) -> dict[str, torch.Size]:
    """Name -> shape of the UNet's weights that belong to any of the groups, in the order of its state dict."""
    temporal = tuple(f"{site.name}." for site in transformer_sites(unet_config) if site.kind == "temporal")

    def belongs(name: str) -> bool:
        mixes_frames = TEMPORAL_CONV in name or name.startswith(temporal)
        return any(WEIGHT_GROUPS[group](name, mixes_frames) for group in groups)

    state = build_network(unet_config, device="meta").state_dict()
    return {name: tensor.shape for name, tensor in state.items() if belongs(name)}


class Dense(nn.Module):
    """A difference as it is. Starts at zero."""

    def __init__(self, shape: torch.Size, factory: dict) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape, **factory))

    def initialise(self, generator: torch.Generator) -> None:
        """Nothing is drawn."""

    def forward(self) -> Tensor:
        return self.delta


class LowRank(nn.Module):
    """A matrix's difference up @ down, of the rank at most. `up` starts at zero, so the difference does."""

    def __init__(self, shape: torch.Size, rank: int, factory: dict) -> None:
        super().__init__()
        rows, columns = shape
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.empty(rank, columns, **factory))
        self.up = nn.Parameter(torch.zeros(rows, rank, **factory))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """nn.Linear's default distribution for `down`, drawn in float32 where the generator lives."""
        bound = 1 / math.sqrt(self.down.shape[1])
        drawn = torch.empty(self.down.shape, device=generator.device)
        self.down.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def forward(self) -> Tensor:
        return self.up @ self.down.to(self.up.device)  # a host may have offloaded one of them


class WeightDelta(nn.Module):
    """Differences of a UNet's weights. State-dict keys are the weight's name and `delta`, or `down` and `up`.

    generator: draws what is random of the initial values (None: seed 0), the same on every device.
    Raises ValueError for a rank where a group holds more than matrices.
    """

    def __init__(
        self,
        config: DeltaConfig,
        unet_config: NetworkConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.unet_config = unet_config
        generator = generator or torch.Generator().manual_seed(0)
        factory = {"device": torch.get_default_device() if device is None else device, "dtype": dtype}
        shapes = weight_shapes(unet_config, config.weights)
        if not shapes:
            raise ValueError(
                f"This base has no {' and '.join(config.weights)} weights: an image model learns how things move in "
                "its motion module; give one (--motion-module)."
            )
        for name, shape in shapes.items():
            part = self._part(name, shape, factory)
            if not next(part.parameters()).is_meta:
                part.initialise(generator)
            attach(self, name, part)

    def _part(self, name: str, shape: torch.Size, factory: dict) -> Dense | LowRank:
        if self.config.rank is None:
            return Dense(shape, factory)
        if len(shape) != 2:
            raise ValueError(
                f"Weight deltas of rank {self.config.rank} are for matrices, and {name} has shape {list(shape)}; "
                "leave the rank out or take keys and values alone."
            )
        return LowRank(shape, self.config.rank, factory)

    def changes(self) -> dict[str, Tensor]:
        """Name of each weight -> its difference."""
        return {name: self.get_submodule(name)() for name in weight_shapes(self.unet_config, self.config.weights)}


def attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module at a dotted path below `root`, making the empty modules between."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


def merge(unet: VideoUNet, deltas: list[tuple[WeightDelta, float]]) -> VideoUNet:
    """The UNet with W + sum of strength * delta for its weights; everything else is shared with `unet`, not copied.

    Differentiable in the deltas. Sums are formed in float32 or better where the weight lies, and rounded once to the
    dtype the UNet computes in: an eight-bit one that weights are stored in would swallow differences and gradients.
    Raises ValueError when a delta is for another UNet, and for a UNet that would compute in eight bits.
    """
    if unet.dtype.itemsize < 2:
        raise ValueError(
            f"Weight deltas cannot act in {str(unet.dtype).removeprefix('torch.')}, which swallows them: "
            "load the UNet in float32, bfloat16 or float16."
        )
    changes: dict[str, list[tuple[Tensor, float]]] = {}
    for delta, strength in deltas:
        for name, change in delta.changes().items():
            changes.setdefault(name, []).append((change, strength))
    return overlay(unet, {name: _sum(unet, name, terms) for name, terms in changes.items()})


def _sum(unet: VideoUNet, name: str, changes: list[tuple[Tensor, float]]) -> Tensor:
    """A weight of the UNet + sum of strength * change, in the UNet's dtype."""
    module, _, leaf = name.rpartition(".")
    try:
        weight = getattr(unet.get_submodule(module), leaf)
    except AttributeError:
        weight = torch.empty(0)  # which is no change's shape
    for change, _ in changes:
        if weight.shape != change.shape:
            raise ValueError(
                f"These weight deltas are for another UNet: this one has no {name} of {list(change.shape)}."
            )
    exact = torch.promote_types(unet.dtype, torch.float32)
    total = weight.to(exact)
    for change, strength in changes:
        total = torch.add(total, change.to(total), alpha=strength)
    return total.to(unet.dtype)


def overlay(module: Module, weights: Mapping[str, Tensor]) -> Module:
    """A module that computes with `weights` (by name) in place of its own and shares all the rest with `module`.

    Modules on the way to a replaced weight are copied, shallowly; `module` itself is neither changed nor copied whole.
    Unlike a replacement for the length of a call it holds in a backward pass that computes layers again.
    """
    if not weights:
        return module
    inner: dict[str, dict[str, Tensor]] = {}
    copied = copy.copy(module)
    copied._parameters, copied._modules = dict(module._parameters), dict(module._modules)
    for name, weight in weights.items():
        first, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = weight
        else:
            copied._parameters[first] = weight  # pyright: ignore[reportArgumentType]  # gradients reach what it is of
    for first, below in inner.items():
        copied._modules[first] = overlay(module.get_submodule(first), below)
    return copied
