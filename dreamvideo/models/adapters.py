"""Bottleneck adapters: small trained residuals beside the frozen UNet (Wei et al. 2024, section 3.2, equations 2-4).

An identity adapter sits in the spatial transformers and learns what a subject looks like; a motion adapter sits in the
temporal ones and learns how things move, with an image feature as a hint of the looks it need not learn (appearance
guidance). An `AdapterStack` is what the UNet's forward takes: any number of them, and of weight deltas (`deltas.py`),
each with its strength, its region and its part of the trajectory. Their files are in `adapter_files.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..safety.limits import MOST_CHANNELS, check_fields, short, whole
from .deltas import DeltaConfig, WeightDelta, attach, merge
from .resizing import area_average
from .unet import UNet, UNetConfig, transformer_sites

# Sublayer of a transformer block -> name of its adapter in the authors' files.
ADAPTER_NAMES = {"attn1": "attn_adapter", "attn2": "cross_attn_adapter", "ff": "ff_adapter"}
TRANSFORMER_KINDS = {"identity": "spatial", "motion": "temporal"}
PLACEMENTS = ("parallel", "serial")
LAST_TIMESTEP = 999  # the noisiest


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter consists of. The kind decides the transformers: identity spatial, motion temporal.

    sublayers: any of attn1, attn2, ff (in a temporal transformer attn2 is a second self-attention).
    hidden: width of the bottleneck, None for half of each transformer's width.
    placement: "parallel" reads the stream entering the sublayer, "serial" the one leaving it.
    condition_dim: width of the image feature, None for an adapter without appearance guidance.
    """

    kind: str
    sublayers: tuple[str, ...]
    hidden: int | None = None
    placement: str = "parallel"
    condition_dim: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in TRANSFORMER_KINDS:
            raise ValueError(f"An adapter is of kind {' or '.join(TRANSFORMER_KINDS)}, not {short(self.kind)}.")
        named = isinstance(self.sublayers, tuple) and all(isinstance(name, str) for name in self.sublayers)
        known = [name for name in ADAPTER_NAMES if named and name in self.sublayers]
        if not known or len(known) != len(self.sublayers):
            raise ValueError(f"Adapter sublayers are any of {', '.join(ADAPTER_NAMES)}, not {_names(self.sublayers)}.")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"Adapter placement is {' or '.join(PLACEMENTS)}, not {short(self.placement)}.")
        for name in ("hidden", "condition_dim"):
            if getattr(self, name) is not None:
                whole(f"Adapter {name}, where there is one,", getattr(self, name), MOST_CHANNELS)

    @classmethod
    def identity(cls, **overrides: Any) -> AdapterConfig:
        """The paper's identity adapter: beside the text cross-attention of every spatial transformer."""
        return cls(**{"kind": "identity", "sublayers": ("attn2",), **overrides})

    @classmethod
    def motion(cls, **overrides: Any) -> AdapterConfig:
        """The paper's motion adapter: beside all three sublayers of every temporal transformer, image-conditioned."""
        return cls(**{"kind": "motion", "sublayers": ("attn1", "attn2", "ff"), "condition_dim": 1024, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` takes it back."""
        return {**asdict(self), "sublayers": list(self.sublayers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdapterConfig:
        check_fields(cls, values)
        sublayers = values["sublayers"]
        return cls(**{**values, "sublayers": tuple(sublayers) if isinstance(sublayers, list) else sublayers})


def _names(sublayers: object) -> str:
    return ", ".join(map(short, sublayers)) if isinstance(sublayers, tuple) and sublayers else short(sublayers)


class Bottleneck(nn.Module):
    """up(gelu(down(x) + down.weight @ condition)): the residual of one site. `up` starts at zero."""

    def __init__(self, width: int, hidden: int, condition_dim: int | None, factory: dict) -> None:
        super().__init__()
        self.down_linear = nn.utils.skip_init(nn.Linear, width, hidden, **factory)
        self.up_linear = nn.utils.skip_init(nn.Linear, hidden, width, **factory)
        self.condition_linear = None
        if condition_dim is not None:
            self.condition_linear = nn.utils.skip_init(nn.Linear, condition_dim, width, **factory)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """nn.Linear's default distribution, drawn in float32 where the generator lives; zeros for `up`."""
        for linear in (self.down_linear, self.condition_linear):
            if linear is not None:
                bound = 1 / math.sqrt(linear.in_features)
                for parameter in (linear.weight, linear.bias):
                    drawn = torch.empty(parameter.shape, device=generator.device)
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
        nn.init.zeros_(self.up_linear.weight)
        nn.init.zeros_(self.up_linear.bias)

    def shift(self, feature: Tensor, strength: Tensor) -> Tensor:
        """What an image feature [B, F or 1, D] adds inside the bottleneck: [B, F or 1, hidden], never token-sized.

        down is linear, so down(x + lam * cond(e)) = down(x) + down.weight @ (lam * cond(e)). strength (lam): [B, 1, 1].
        Computed where the feature lies, in the weights' dtype.
        """
        weight, bias = self.condition_linear.weight, self.condition_linear.bias
        feature = feature.to(weight.dtype)
        condition = F.linear(feature, weight.to(feature), bias.to(feature))  # [B, F or 1, width]
        return F.linear(condition * strength.to(condition), self.down_linear.weight.to(condition))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x [..., width] -> residual of the same shape, computed where and as x is, whatever the weights are."""
        down, up = self.down_linear, self.up_linear
        h = F.linear(x, down.weight.to(x), down.bias.to(x))
        kept = torch.is_grad_enabled()  # else nobody else has h, and it is changed where it lies
        if shift is not None:
            h = h + shift.to(h) if kept else h.add_(shift.to(h))
        h = F.gelu(h) if kept else torch.ops.aten.gelu_(h)
        return F.linear(h, up.weight.to(x), up.bias.to(x))


class Adapter(nn.Module):
    """One subject's or one motion's bottlenecks for every transformer of the right kind in a UNet.

    State-dict keys are the authors': `input_blocks.1.1.transformer_blocks.0.cross_attn_adapter.down_linear.weight`.
    generator: draws the initial weights (None: seed 0), the same ones on every device; nothing is drawn on "meta".
    """

    def __init__(
        self,
        config: AdapterConfig,
        unet_config: UNetConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.unet_config = unet_config
        self.modules_at: dict[str, str] = {}  # "<transformer>.transformer_blocks.0.attn2" -> module path
        generator = generator or torch.Generator().manual_seed(0)
        factory = {"device": torch.get_default_device() if device is None else device, "dtype": dtype}
        for site in transformer_sites(unet_config):
            if site.kind != TRANSFORMER_KINDS[config.kind]:
                continue
            for sublayer in sorted(config.sublayers):
                hidden = config.hidden or site.width // 2
                bottleneck = Bottleneck(site.width, hidden, config.condition_dim, factory)
                if not bottleneck.up_linear.weight.is_meta:
                    bottleneck.initialise(generator)
                block = f"{site.name}.transformer_blocks.0"
                self.modules_at[f"{block}.{sublayer}"] = f"{block}.{ADAPTER_NAMES[sublayer]}"
                attach(self, f"{block}.{ADAPTER_NAMES[sublayer]}", bottleneck)

    def at(self, site: str) -> Bottleneck | None:
        """The bottleneck of a sublayer such as "input_blocks.1.1.transformer_blocks.0.attn2", if there is one."""
        path = self.modules_at.get(site)
        return None if path is None else self.get_submodule(path)


AnyConfig = AdapterConfig | DeltaConfig
AnyAdapter = Adapter | WeightDelta


def build_adapter(
    config: AnyConfig,
    unet_config: UNetConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> AnyAdapter:
    """The fresh adapter or weight deltas that a config describes."""
    family = WeightDelta if isinstance(config, DeltaConfig) else Adapter
    return family(config, unet_config, device, dtype, generator)


@dataclass(frozen=True, eq=False)
class StackEntry:
    """One adapter of a stack, or weight deltas, and how much of it, where in the picture and when.

    strength: factor on its residuals; 0 leaves the base exactly as it is.
    mask: where it acts, [H, W] or [F, H, W] in 0..1 at any resolution; averaged down to each level of the UNet. Weight
    deltas take none: a weight serves the whole picture.
    window: part of the sampling trajectory where it acts, 0 the noisiest step, 1 the last.
    schedule: further factor, a function of positions on the trajectory, [B] in 0..1 -> [B].
    """

    adapter: AnyAdapter
    strength: float = 1.0
    mask: Tensor | None = None
    window: tuple[float, float] = (0.0, 1.0)
    schedule: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        start, end = self.window
        if not math.isfinite(self.strength):
            raise ValueError(f"Adapter strength is a finite number, not {self.strength}.")
        if not 0 <= start < end <= 1:
            raise ValueError(f"An adapter's window goes from a start to a later end within 0..1, not {start} to {end}.")
        if self.mask is not None and (self.mask.ndim not in (2, 3) or not ((self.mask >= 0) & (self.mask <= 1)).all()):
            raise ValueError(
                f"An adapter's mask is [H, W] or [F, H, W] with values in 0..1, not {list(self.mask.shape)} "
                f"in {float(self.mask.min()):g}..{float(self.mask.max()):g}."
            )
        if self.mask is not None and isinstance(self.adapter, WeightDelta):
            raise ValueError("Weight deltas act on the whole picture; take the mask off or use an adapter.")

    def factors(self, timesteps: Tensor) -> Tensor | None:
        """Strength at each of the timesteps [B]: [B], or None where it is 0 for all of them."""
        if self.strength == 0:
            return None
        position = 1 - timesteps.float() / LAST_TIMESTEP
        factors = torch.full_like(position, self.strength)
        if self.window != (0.0, 1.0):
            factors = factors * ((position >= self.window[0]) & (position <= self.window[1]))
        if self.schedule is not None:
            factors = factors * self.schedule(position)
        unlimited = self.window == (0.0, 1.0) and self.schedule is None  # asking the tensor would wait for the device
        return factors if unlimited or factors.any() else None

    def factor(self, timesteps: Tensor) -> float:
        """The one factor of all the timesteps [B]. Raises ValueError where they differ: a batch shares its weights."""
        if self.window == (0.0, 1.0) and self.schedule is None:
            return self.strength
        factors = self.factors(timesteps)
        different = [0.0] if factors is None else factors.unique().tolist()
        if len(different) > 1:
            raise ValueError(
                f"Weight deltas have one strength for a batch, but its timesteps ask for {len(different)} of them."
            )
        return different[0]


class AdapterStack:
    """Several adapters acting together; their residuals add up. The `Adapters` that a UNet's forward takes.

    feature: image feature for appearance guidance, [B, D], or [B, F, D] for one a frame; one row serves every sample.
    feature_strength: factor (lam) on its projection, a number or [B]. Three states stay distinct for every sample:
    an image (lam * (W e + b)), a zero image (e = 0 leaves lam * b), and none (feature None, or lam = 0: not even b).
    Per-sample features and strengths let classifier-free guidance run as one batch.
    """

    def __init__(
        self,
        entries: Iterable[StackEntry],
        feature: Tensor | None = None,
        feature_strength: Tensor | float = 1.0,
    ) -> None:
        self.entries = tuple(entries)
        self._merged: tuple[Any, UNet | None] = (None, None)  # of what, and the result
        self.feature = feature
        self.feature_strength = torch.as_tensor(feature_strength, dtype=torch.float32)
        self.shifts: dict[Bottleneck, Tensor] = {}  # what the feature adds, kept from one step of sampling to the next
        if feature is None:
            return
        if feature.ndim not in (2, 3):
            raise ValueError(f"An image feature is [B, D] or [B, F, D], not {list(feature.shape)}.")
        for config in (entry.adapter.config for entry in self.entries):
            if config.condition_dim not in (None, feature.shape[-1]):
                raise ValueError(
                    f"This {config.kind} adapter reads image features of width {config.condition_dim}, "
                    f"not {feature.shape[-1]}: the image encoder is not the one it was trained with."
                )

    def with_condition(self, feature: Tensor | None, strength: Tensor | float = 1.0) -> AdapterStack:
        """The same adapters under another image feature."""
        return AdapterStack(self.entries, feature, strength)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AdapterStack:
        """A stack that lies there, `dtype` for its adapters. One that has to change is copied: others may use it."""
        entries = [
            replace(
                entry,
                adapter=_moved(entry.adapter, device, dtype),
                mask=None if entry.mask is None else entry.mask.to(device=device),
            )
            for entry in self.entries
        ]
        feature = None if self.feature is None else self.feature.to(device=device)
        return AdapterStack(entries, feature, self.feature_strength.to(device=device))

    def network(self, unet: UNet, timesteps: Tensor) -> UNet:
        """The UNet with the weight deltas of this stack merged in; `unet` itself where there are none.

        Without gradients the merge is kept, so that the steps of a sampling share one as long as the factors stay.
        """
        deltas = [(e.adapter, e.factor(timesteps)) for e in self.entries if isinstance(e.adapter, WeightDelta)]
        deltas = [(delta, factor) for delta, factor in deltas if factor != 0]
        if not deltas:
            return unet
        if torch.is_grad_enabled():
            return merge(unet, deltas)
        versions = [_version(tensor) for delta, _ in deltas for tensor in delta.parameters()]
        what = (unet, unet.dtype, next(unet.parameters()).device, [factor for _, factor in deltas], versions)
        if self._merged[0] != what:
            self._merged = (what, merge(unet, deltas))
        return self._merged[1]

    def bind(self, timesteps: Tensor, size: tuple[int, int]) -> BoundStack:
        """Ready for one forward with timesteps [B] of latents (h, w). Raises ValueError when the batch does not fit."""
        for name, rows in (("image features", self.feature), ("feature strengths", self.feature_strength)):
            if rows is not None and rows.ndim and rows.shape[0] not in (1, len(timesteps)):
                raise ValueError(f"Got {rows.shape[0]} {name} for {len(timesteps)} samples; give one, or one a sample.")
        acting = [(entry, entry.factors(timesteps)) for entry in self.entries]
        return BoundStack(
            [(entry, factors) for entry, factors in acting if factors is not None],
            None if self.feature is None else self.feature.reshape(len(self.feature), -1, self.feature.shape[-1]),
            self.feature_strength.reshape(-1, 1, 1),
            self.shifts,
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _moved(adapter: AnyAdapter, device: torch.device | str | None, dtype: torch.dtype | None) -> AnyAdapter:
    found = {(parameter.device, parameter.dtype) for parameter in adapter.parameters()}  # a host offloads by parts
    probes = [torch.empty(0, device=place, dtype=kind).to(device=device, dtype=dtype) for place, kind in found]
    if found == {(probe.device, probe.dtype) for probe in probes}:
        return adapter
    return copy.deepcopy(adapter).to(device=device, dtype=dtype)


class BoundStack:
    """A stack at given timesteps; `add` is what transformer blocks call."""

    def __init__(
        self,
        acting: list[tuple[StackEntry, Tensor]],
        feature: Tensor | None,
        strength: Tensor,
        shifts: dict[Bottleneck, Tensor],
    ) -> None:
        self.acting = acting  # with factors [B]
        self.feature = feature  # [B or 1, F or 1, D]
        self.strength = strength  # [B or 1, 1, 1]
        self.shifts = shifts
        self.weights: dict[tuple[int, tuple[int, int]], Tensor] = {}  # of each entry at each level, float32

    def add(self, site: str, before: Tensor, after: Tensor, size: tuple[int, int], *, temporal: bool) -> Tensor:
        """`after` plus the residuals of all adapters at `site`; see `unet.BoundAdapters` for the shapes."""
        x = after
        for index, (entry, factors) in enumerate(self.acting):
            bottleneck = entry.adapter.at(site)
            if bottleneck is None:
                continue
            source = before if entry.adapter.config.placement == "parallel" else after
            _check_width(entry.adapter, bottleneck, site, source)
            residual = bottleneck(source, self._shift(bottleneck, source, temporal))
            residual, weight = residual.to(x), self._weight(index, factors, x, size, temporal).to(x)
            place = None if torch.is_grad_enabled() else residual  # which nobody else has
            x = torch.addcmul(x, residual, weight, out=place)
        return x

    def _weight(self, index: int, factors: Tensor, x: Tensor, size: tuple[int, int], temporal: bool) -> Tensor:
        key = (index, size)
        if key not in self.weights:
            mask = self.acting[index][0].mask
            weight = factors[:, None, None, None]  # [B, 1, 1, 1]
            if mask is not None:
                weight = weight * _mask_at(mask.to(x.device), x.shape[2 if temporal else 1], size, temporal)
            self.weights[key] = weight
        return self.weights[key]

    def _shift(self, bottleneck: Bottleneck, x: Tensor, temporal: bool) -> Tensor | None:
        if self.feature is None or bottleneck.condition_linear is None:
            return None
        frames = x.shape[2 if temporal else 1]
        if self.feature.shape[1] not in (1, frames):
            raise ValueError(f"Got image features for {self.feature.shape[1]} frames, but the video has {frames}.")
        if torch.is_grad_enabled():
            shift = bottleneck.shift(self.feature.to(x.device), self.strength)  # [B, F or 1, hidden]
        elif (shift := self.shifts.get(bottleneck)) is None:
            shift = self.shifts[bottleneck] = bottleneck.shift(self.feature.to(x.device), self.strength)
        return shift.unsqueeze(1 if temporal else 2)


def _check_width(adapter: Adapter, bottleneck: Bottleneck, site: str, x: Tensor) -> None:
    width = bottleneck.down_linear.in_features
    if x.shape[-1] != width:
        raise ValueError(
            f"This {adapter.config.kind} adapter is for another UNet: at {site} it is made for width {width}, "
            f"but the UNet has {x.shape[-1]}."
        )


def _mask_at(mask: Tensor, frames: int, size: tuple[int, int], temporal: bool) -> Tensor:
    """A mask [H, W] or [F, H, W] averaged down to one level: [1, F or 1, N, 1], or [1, N, F or 1, 1] if temporal."""
    mask = mask.float().reshape(1, -1, *mask.shape[-2:])  # [1, F or 1, H, W]
    if mask.shape[1] not in (1, frames):
        raise ValueError(f"An adapter's mask has {mask.shape[1]} frames, but the video has {frames}.")
    level = area_average(mask, size).flatten(2).unsqueeze(3)  # [1, F or 1, N, 1]
    return level.transpose(1, 2) if temporal else level
