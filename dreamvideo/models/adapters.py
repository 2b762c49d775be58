"""Bottleneck adapters: small trained residuals beside the frozen UNet (Wei et al. 2024, section 3.2, equations 2-4).

An identity adapter sits in the spatial transformers and learns what a subject looks like; a motion adapter sits in the
temporal ones and learns how things move, with an image feature as a hint of the looks it need not learn (appearance
guidance). An `AdapterStack` is what the UNet's forward takes: any number of them, and of weight deltas (`deltas.py`),
each with its strength, its region and its part of the trajectory. Their files are in `adapter_files.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..safety.limits import LIMITS, MOST_CHANNELS, short, whole
from .config import NetworkConfig, Stored, UNetConfig, temporal_convolutions, transformer_sites
from .deltas import DeltaConfig, WeightDelta, attach
from .frame_attention import FrameAttention, FrameAttentionConfig
from .over_time import ConvResidual, FrameVectors

# Sublayer of a transformer block -> name of its adapter in the authors' files.
ADAPTER_NAMES = {"attn1": "attn_adapter", "attn2": "cross_attn_adapter", "ff": "ff_adapter"}
TRANSFORMER_KINDS = {"identity": "spatial", "motion": "temporal"}
PLACEMENTS = ("parallel", "serial")
LATER = ("frames", "conv_rank")  # fields that the second version of the files added
FRAME_VECTORS, CONV_RESIDUAL = "frame_vectors", "adapter"  # what these modules are called below their sites


@dataclass(frozen=True)
class AdapterConfig(Stored):
    """What an adapter consists of. The kind decides the transformers: identity spatial, motion temporal.

    sublayers: any of attn1, attn2, ff (in a temporal transformer attn2 is a second self-attention); none of them, where
    there are frames or a conv_rank.
    hidden: width of the bottleneck, None for half of each transformer's width.
    placement: "parallel" reads the stream entering the sublayer, "serial" the one leaving it.
    condition_dim: width of the image feature, None for an adapter without appearance guidance.
    frames: for how many frames a motion adapter has a vector each at every transformer, None for one that has none.
    conv_rank: of a motion adapter's residuals at the temporal convolutions, None for one that has none.
    """

    kind: str
    sublayers: tuple[str, ...]
    hidden: int | None = None
    placement: str = "parallel"
    condition_dim: int | None = None
    frames: int | None = None
    conv_rank: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in TRANSFORMER_KINDS:
            raise ValueError(f"An adapter is of kind {' or '.join(TRANSFORMER_KINDS)}, not {short(self.kind)}.")
        named = isinstance(self.sublayers, tuple) and all(isinstance(name, str) for name in self.sublayers)
        known = [name for name in ADAPTER_NAMES if named and name in self.sublayers]
        if not named or len(known) != len(self.sublayers) or not (known or self.frames or self.conv_rank):
            raise ValueError(f"Adapter sublayers are any of {', '.join(ADAPTER_NAMES)}, not {_names(self.sublayers)}.")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"Adapter placement is {' or '.join(PLACEMENTS)}, not {short(self.placement)}.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        numbers = ("hidden", "condition_dim", "frames", "conv_rank")
        for name in (name for name in numbers if getattr(self, name) is not None):
            most = int(LIMITS["frames"].most) if name == "frames" else MOST_CHANNELS
            whole(f"Adapter {name}, where there is one,", getattr(self, name), most)
        if self.kind != "motion" and (self.frames or self.conv_rank):
            raise ValueError(
                f"Adapter frames and conv_rank are for a motion, not for kind {self.kind}: leave them out."
            )
        if not self.sublayers and self.condition_dim:
            raise ValueError("An adapter without sublayers has no use for a condition_dim: leave it out.")

    def to_dict(self) -> dict[str, Any]:
        """As `Stored`'s; without what the first version of the files did not know, where there is none of it."""
        return {key: value for key, value in super().to_dict().items() if value is not None or key not in LATER}

    @property
    def format_version(self) -> int:
        """Which version of the files holds such an adapter."""
        return 1 if self.frames is None and self.conv_rank is None else 2

    @classmethod
    def identity(cls, **overrides: Any) -> AdapterConfig:
        """The paper's identity adapter: beside the text cross-attention of every spatial transformer."""
        return cls(**{"kind": "identity", "sublayers": ("attn2",), **overrides})

    @classmethod
    def motion(cls, **overrides: Any) -> AdapterConfig:
        """The paper's motion adapter: beside all three sublayers of every temporal transformer, image-conditioned."""
        return cls(**{"kind": "motion", "sublayers": ("attn1", "attn2", "ff"), "condition_dim": 1024, **overrides})


def _names(sublayers: object) -> str:
    return ", ".join(map(short, sublayers)) if isinstance(sublayers, tuple) and sublayers else short(sublayers)


def _check_places(config: AdapterConfig, unet_config: NetworkConfig) -> None:
    """Raise ValueError for an adapter that would sit nowhere in a UNet."""
    if config.conv_rank is not None and not temporal_convolutions(unet_config):
        raise ValueError(
            "Residuals of temporal convolutions need a ModelScope base, and this one has no such convolutions: take a "
            "method without them (dreamvideo, or frame_aware)."
        )
    if TRANSFORMER_KINDS[config.kind] not in {site.kind for site in transformer_sites(unet_config)}:
        raise ValueError(
            f"A {config.kind} adapter sits in the motion module, and this image model has none: give one "
            "(--motion-module), or take the method tune_a_video, which needs none."
        )


class Bottleneck(nn.Module):
    """up(gelu(down(x) + down.weight @ condition)): the residual of one site. `up` starts at zero."""

    def __init__(self, width: int, hidden: int, condition_dim: int | None, factory: dict) -> None:
        super().__init__()
        self.down_linear = _empty_linear(width, hidden, factory)
        self.up_linear = _empty_linear(hidden, width, factory)
        self.condition_linear = None if condition_dim is None else _empty_linear(condition_dim, width, factory)

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

    def condition(self, feature: Tensor, strength: Tensor) -> Tensor:
        """What an image feature [B, F or 1, D] adds inside the bottleneck: [B, F or 1, hidden], never token-sized.

        down is linear, so down(x + lam * cond(e)) = down(x) + down.weight @ (lam * cond(e)). strength (lam): [B, 1, 1].
        Computed where the feature lies, in the weights' dtype.
        """
        assert self.condition_linear is not None
        weight, bias = self.condition_linear.weight, self.condition_linear.bias
        feature = feature.to(weight.dtype)
        condition = F.linear(feature, weight.to(feature), bias.to(feature))  # [B, F or 1, width]
        return F.linear(condition * strength.to(condition), self.down_linear.weight.to(condition))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [..., width] -> residual of the same shape, computed where and as x is, whatever the weights are."""
        down, up = self.down_linear, self.up_linear
        h = F.linear(x, down.weight.to(x), down.bias.to(x))
        kept = torch.is_grad_enabled()  # else nobody else has h, and it is changed where it lies
        if condition is not None:
            h = h + condition.to(h) if kept else h.add_(condition.to(h))
        h = F.gelu(h) if kept else torch.ops.aten.gelu_(h)
        return F.linear(h, up.weight.to(x), up.bias.to(x))


def _empty_linear(width_in: int, width_out: int, factory: dict) -> nn.Linear:
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, width_in, width_out, **factory))


class Adapter(nn.Module):
    """One subject's or one motion's bottlenecks for every transformer of the right kind in a UNet.

    State-dict keys are the authors': `input_blocks.1.1.transformer_blocks.0.cross_attn_adapter.down_linear.weight`.
    generator: draws the initial weights (None: seed 0), the same ones on every device; nothing is drawn on "meta".
    """

    def __init__(
        self,
        config: AdapterConfig,
        unet_config: NetworkConfig,
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
        _check_places(config, unet_config)
        for site in transformer_sites(unet_config):
            if site.kind == TRANSFORMER_KINDS[config.kind]:
                self._add_to(f"{site.name}.transformer_blocks.0", site.width, generator, factory)
        if config.conv_rank is not None:
            for conv in temporal_convolutions(unet_config):
                residual = ConvResidual(conv.channels, config.conv_rank, factory)
                self._attach(conv.name, f"{conv.name}.{CONV_RESIDUAL}", residual, generator)

    def _add_to(self, block: str, width: int, generator: torch.Generator, factory: dict) -> None:
        config = self.config
        for sublayer in sorted(config.sublayers):
            bottleneck = Bottleneck(width, config.hidden or width // 2, config.condition_dim, factory)
            self._attach(f"{block}.{sublayer}", f"{block}.{ADAPTER_NAMES[sublayer]}", bottleneck, generator)
        if config.frames is not None:
            self.modules_at[block] = f"{block}.{FRAME_VECTORS}"
            attach(self, f"{block}.{FRAME_VECTORS}", FrameVectors(config.frames, width, factory))

    def _attach(self, site: str, path: str, part: Bottleneck | ConvResidual, generator: torch.Generator) -> None:
        if not next(part.parameters()).is_meta:
            part.initialise(generator)
        self.modules_at[site] = path
        attach(self, path, part)

    def at(self, site: str) -> Bottleneck | None:
        """The bottleneck of a sublayer such as "input_blocks.1.1.transformer_blocks.0.attn2", if there is one."""
        return cast("Bottleneck | None", self._module_at(site))

    def frame_vectors(self, block: str) -> FrameVectors | None:
        """The frame vectors of a block such as "input_blocks.1.2.transformer_blocks.0", if there are any."""
        return cast("FrameVectors | None", self._module_at(block))

    def conv_residual(self, site: str) -> ConvResidual | None:
        """The residual of a temporal convolution such as "input_blocks.1.0.temopral_conv.conv1", if there is one."""
        return cast("ConvResidual | None", self._module_at(site))

    def _module_at(self, site: str) -> nn.Module | None:
        path = self.modules_at.get(site)
        return None if path is None else self.get_submodule(path)


AnyConfig = AdapterConfig | DeltaConfig  # FrameAttentionConfig among the latter
AnyAdapter = Adapter | WeightDelta


def narrowed(config: AnyConfig, unet_config: NetworkConfig) -> AnyConfig:
    """The config with widths and ranks that are given in numbers scaled to a base narrower than the full-size one."""
    share = min(1.0, unet_config.dim / UNetConfig().dim)
    numbers = {name: number for name in ("hidden", "conv_rank", "rank") if (number := getattr(config, name, None))}
    return replace(config, **{name: max(1, round(number * share)) for name, number in numbers.items()})


def build_adapter(
    config: AnyConfig,
    unet_config: NetworkConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> AnyAdapter:
    """The fresh adapter or weight deltas that a config describes."""
    if isinstance(config, FrameAttentionConfig):
        return FrameAttention(config, unet_config, device, dtype, generator)
    if isinstance(config, DeltaConfig):
        return WeightDelta(config, unet_config, device, dtype, generator)
    return Adapter(config, unet_config, device, dtype, generator)
