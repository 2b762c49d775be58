"""Several adapters and weight deltas acting together: strengths, regions of the picture, windows in time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter, AnyAdapter, Bottleneck
from .config import level_of
from .deltas import WeightDelta, merge
from .frame_attention import FrameAttention, first_and_previous
from .network import VideoUNet
from .regions import BoundRegions, Region, check_mask, mask_at

LAST_TIMESTEP = 999  # the noisiest
# How a mask [B, F, H, W] lies beside what it weighs: tokens of pictures or, True, of places over time; videos.
TOKENS = {False: "b f (h w) 1", True: "b (h w) f 1"}
VIDEO = "b 1 f h w"


@dataclass(frozen=True, eq=False)
class StackEntry:
    """One adapter of a stack, or weight deltas, and how much of it, where in the picture and when.

    strength: factor on its residuals; 0 leaves the base exactly as it is.
    mask: where it acts, [H, W] or [F, H, W] in 0..1 at any resolution; averaged down to each level of the UNet. Weight
    deltas take none: a weight serves the whole picture.
    window: part of the sampling trajectory where it acts, 0 the noisiest step, 1 the last.
    ramp: further factors at the window's start and at its end; between them evenly.
    depth: further factors at the UNet's outermost level and at its middle; between them evenly, level by level. Weight
    deltas take none.
    guided_from: from which part of the trajectory on the half without the prompt goes without it, so that guidance
    draws towards what it adds as it draws towards the prompt (Park et al., ICCV 2025, arXiv 2508.00319); 1: never.
    Weight deltas take none: a batch shares its weights.
    """

    adapter: AnyAdapter
    strength: float = 1.0
    mask: Tensor | None = None
    window: tuple[float, float] = (0.0, 1.0)
    ramp: tuple[float, float] = (1.0, 1.0)
    depth: tuple[float, float] = (1.0, 1.0)
    guided_from: float = 1.0

    def __post_init__(self) -> None:
        start, end = self.window
        for factor in (self.strength, *self.ramp, *self.depth):
            if not math.isfinite(factor):
                raise ValueError(f"Adapter strength is a finite number, not {factor}.")
        if not 0 <= start < end <= 1:
            raise ValueError(f"An adapter's window goes from a start to a later end within 0..1, not {start} to {end}.")
        if not 0 <= self.guided_from <= 1:
            raise ValueError(f"Guidance draws towards an adapter from a part in 0..1 on, not {self.guided_from:g}.")
        if self.mask is not None:
            check_mask("An adapter", self.mask)
        limited = self.mask is not None or self.depth != (1.0, 1.0) or self.guided_from < 1
        if isinstance(self.adapter, WeightDelta) and limited:
            raise ValueError(
                "Weight deltas act on the whole picture, at every depth and in both halves of guidance; take mask, "
                "depth and guided off or use an adapter."
            )

    @property
    def steady(self) -> bool:
        """Whether it acts alike at every timestep."""
        return self.window == (0.0, 1.0) and self.ramp == (1.0, 1.0)

    def factors(self, timesteps: Tensor) -> Tensor | None:
        """Strength at each of the timesteps [B]: [B], or None where it is 0 for all of them."""
        if self.strength == 0:
            return None
        position = 1 - timesteps.float() / LAST_TIMESTEP
        factors = torch.full_like(position, self.strength)
        if self.steady:  # asking the tensor would wait for the device
            return factors
        (start, end), (first, last) = self.window, self.ramp
        factors = factors * ((position >= start) & (position <= end))
        factors = factors * (first + (last - first) * (position - start) / (end - start))
        return factors if factors.any() else None

    def factors_by_half(self, timesteps: Tensor, prompted: Tensor) -> Tensor | None:
        """`factors`, and 0 where the half without the prompt goes without it. prompted [B or 1]: see `AdapterStack`."""
        factors = self.factors(timesteps)
        if factors is None or self.guided_from == 1:
            return factors
        guided = 1 - timesteps.float() / LAST_TIMESTEP >= self.guided_from
        return factors * torch.where(guided, prompted.to(factors), 1.0)

    def factor(self, timesteps: Tensor) -> float:
        """The one factor of all the timesteps [B]. Raises ValueError where they differ: a batch shares its weights."""
        if self.steady:
            return self.strength
        factors = self.factors(timesteps)
        different = [0.0] if factors is None else factors.unique().tolist()
        if len(different) > 1:
            raise ValueError(
                f"Weight deltas have one strength for a batch, but its timesteps ask for {len(different)} of them."
            )
        return different[0]

    def at_depth(self, site: str) -> float:
        """The further factor at a site such as "input_blocks.1.1.transformer_blocks.0.attn2"."""
        outer, middle = self.depth
        return outer if outer == middle else outer + (middle - outer) * level_of(site, self.adapter.unet_config)


class AdapterStack:
    """Several adapters acting together; their residuals add up. The `Adapters` that a UNet's forward takes.

    feature: image feature for appearance guidance, [B, D], or [B, F, D] for one a frame; one row serves every sample.
    feature_strength: factor (lam) on its projection, a number or [B]. Three states stay distinct for every sample:
    an image (lam * (W e + b)), a zero image (e = 0 leaves lam * b), and none (feature None, or lam = 0: not even b).
    Per-sample features and strengths let classifier-free guidance run as one batch.
    regions: parts of the video that read prompts of their own.
    prompted: 1 for samples of the prompt, 0 for those of the negative one, which heed no region and go without what
    guidance draws towards; a number or [B].
    """

    def __init__(
        self,
        entries: Iterable[StackEntry],
        feature: Tensor | None = None,
        feature_strength: Tensor | float = 1.0,
        regions: Sequence[Region] = (),
        prompted: Tensor | float = 1.0,
    ) -> None:
        self.entries = tuple(entries)
        self.regions = tuple(regions)
        self.prompted = torch.as_tensor(prompted, dtype=torch.float32)
        self._merged: list[tuple[Any, VideoUNet]] = []  # of what, and the result: the last merge, if there was one
        self.feature = feature
        self.feature_strength = torch.as_tensor(feature_strength, dtype=torch.float32)
        self.conditions: dict[Bottleneck, Tensor] = {}  # what the feature adds, kept from step to step of sampling
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
        """The same adapters and regions under another image feature."""
        return AdapterStack(self.entries, feature, strength, self.regions, self.prompted)

    def for_halves(self, prompted: Tensor | float) -> AdapterStack:
        """The same for samples of which others are the prompt's."""
        return AdapterStack(self.entries, self.feature, self.feature_strength, self.regions, prompted)

    def within(self, entries: Iterable[StackEntry], regions: Sequence[Region]) -> AdapterStack:
        """Other entries and regions under the same image feature, with the same weight deltas, for a part of the
        picture."""
        inner = copy.copy(self)  # with what it keeps from step to step
        inner.entries, inner.regions = tuple(entries), tuple(regions)
        return inner

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
        regions = [region.to(device) for region in self.regions]
        prompted = self.prompted.to(device=device)
        return AdapterStack(entries, feature, self.feature_strength.to(device=device), regions, prompted)

    def network(self, unet: VideoUNet, timesteps: Tensor) -> VideoUNet:
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
        if not self._merged or self._merged[0][0] != what:
            self._merged[:] = [(what, merge(unet, deltas))]
        return self._merged[0][1]

    def bind(self, timesteps: Tensor, size: tuple[int, int]) -> BoundStack:
        """Ready for one forward with timesteps [B] of latents (h, w). Raises ValueError when the batch does not fit."""
        per_sample = {
            "image features": self.feature,
            "feature strengths": self.feature_strength,
            "halves of guidance": self.prompted,
        }
        for name, rows in per_sample.items():
            if rows is not None and rows.ndim and rows.shape[0] not in (1, len(timesteps)):
                raise ValueError(f"Got {rows.shape[0]} {name} for {len(timesteps)} samples; give one, or one a sample.")
        acting = [(entry, entry.factors_by_half(timesteps, self.prompted)) for entry in self.entries]
        return BoundStack(
            [(entry, factors) for entry, factors in acting if factors is not None],
            None if self.feature is None else self.feature.reshape(len(self.feature), -1, self.feature.shape[-1]),
            self.feature_strength.reshape(-1, 1, 1),
            self.conditions,
            BoundRegions(self.regions, self.heeds.reshape(-1)) if self.regions else None,
        )

    @property
    def heeds(self) -> Tensor:
        """How much each sample heeds the regions."""
        return self.prompted


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
        conditions: dict[Bottleneck, Tensor],
        regions: BoundRegions | None = None,
    ) -> None:
        self.acting = acting  # with factors [B]
        self.regions = regions
        self.feature = feature  # [B or 1, F or 1, D]
        self.strength = strength  # [B or 1, 1, 1]
        self.conditions = conditions
        self.weights: dict[tuple[int, tuple[int, int], str], Tensor] = {}  # of each entry at each level, float32

    @property
    def norm_across_frames(self) -> bool:
        """Whether Tune-A-Video makes one video of the frames: in the norms as in what they read."""
        return any(isinstance(entry.adapter, FrameAttention) for entry, _ in self.acting)

    def enter(self, block: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`x` plus the frame vectors of all adapters at a temporal block; see `call.BoundAdapters`."""
        for index, (entry, factors) in enumerate(self.acting):
            adapter = entry.adapter
            if isinstance(adapter, WeightDelta) or (vectors := adapter.frame_vectors(block)) is None:
                continue
            _check_width(adapter, vectors.weight.shape[1], block, x.shape[-1])
            weight = self._weight(index, factors, x.shape[2], size, TOKENS[True])  # [B, N or 1, F or 1, 1]
            weight = weight * entry.at_depth(block)
            x = x + weight.to(x) * vectors(x.shape[2]).to(x)
        return x

    def source(self, block: str, x: Tensor) -> Tensor:
        """What a spatial block's self-attention takes keys and values from; see `call.BoundAdapters`."""
        return first_and_previous(x) if self.norm_across_frames else x

    def add(self, site: str, before: Tensor, after: Tensor, size: tuple[int, int], *, temporal: bool) -> Tensor:
        """`after` plus the residuals of all adapters at `site`; see `call.BoundAdapters` for the shapes."""
        x = after
        for index, (entry, factors) in enumerate(self.acting):
            adapter = entry.adapter
            if isinstance(adapter, FrameAttention) and not temporal and (attention := adapter.behind(site)) is not None:
                weight = self._weight(index, factors, x.shape[1], size, TOKENS[temporal])
                x = _plus(x, attention(x), weight)
            if isinstance(adapter, WeightDelta) or (bottleneck := adapter.at(site)) is None:
                continue
            source = before if adapter.config.placement == "parallel" else after
            _check_width(adapter, bottleneck.down_linear.in_features, site, source.shape[-1])
            residual = bottleneck(source, self._condition(bottleneck, source, temporal))
            weight = self._weight(index, factors, source.shape[2 if temporal else 1], size, TOKENS[temporal])
            x = _plus(x, residual, weight * entry.at_depth(site))
        return x

    def read(self, attend: Callable[[Tensor], Tensor], text: Tensor, size: tuple[int, int]) -> Tensor:
        """What cross-attention reads, place by place; see `call.BoundAdapters`."""
        return text if self.regions is None else self.regions.read(attend, text, size)

    def add_over_time(self, site: str, before: Tensor, after: Tensor) -> Tensor:
        """`after` plus the residuals of all adapters at a temporal convolution; see `call.BoundAdapters`."""
        x = after
        for index, (entry, factors) in enumerate(self.acting):
            adapter = entry.adapter
            if isinstance(adapter, WeightDelta) or (residual := adapter.conv_residual(site)) is None:
                continue
            _check_width(adapter, residual.down.shape[1], site, before.shape[1])
            weight = self._weight(index, factors, before.shape[2], (before.shape[3], before.shape[4]), VIDEO)
            x = _plus(x, residual(before), weight * entry.at_depth(site))
        return x

    def _weight(self, index: int, factors: Tensor, frames: int, size: tuple[int, int], layout: str) -> Tensor:
        key = (index, size, layout)
        if key not in self.weights:
            mask = self.acting[index][0].mask
            weight = factors.reshape(-1, *[1] * (4 if layout == VIDEO else 3))  # [B, 1, 1, 1]
            if mask is not None:
                weight = weight * mask_at(mask.to(factors.device), frames, size, layout)
            self.weights[key] = weight
        return self.weights[key]

    def _condition(self, bottleneck: Bottleneck, x: Tensor, temporal: bool) -> Tensor | None:
        if self.feature is None or bottleneck.condition_linear is None:
            return None
        frames = x.shape[2 if temporal else 1]
        if self.feature.shape[1] not in (1, frames):
            raise ValueError(f"Got image features for {self.feature.shape[1]} frames, but the video has {frames}.")
        if torch.is_grad_enabled():
            condition = bottleneck.condition(self.feature.to(x.device), self.strength)  # [B, F or 1, hidden]
        elif (condition := self.conditions.get(bottleneck)) is None:
            condition = self.conditions[bottleneck] = bottleneck.condition(self.feature.to(x.device), self.strength)
        return condition.unsqueeze(1 if temporal else 2)


def _plus(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """x + weight * residual, in the place of the residual where nobody else has it."""
    residual = residual.to(x)
    return torch.addcmul(x, residual, weight.to(x), out=None if torch.is_grad_enabled() else residual)


def _check_width(adapter: Adapter, width: int, site: str, found: int) -> None:
    if found != width:
        raise ValueError(
            f"This {adapter.config.kind} adapter is for another UNet: at {site} it is made for width {width}, "
            f"but the UNet has {found}."
        )
