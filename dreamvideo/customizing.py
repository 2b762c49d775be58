"""What sampling adds to a base: adapters, each with its strength, place and time, their words, and regions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .files.adapter_info import TrainedAdapter
from .models.adapters import Adapter
from .models.regions import check_apart
from .models.resizing import area_average
from .models.stack import StackEntry


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """A part of the video that shows what a prompt of its own says; mask, apart: see `models.regions.Region`."""

    prompt: str
    mask: Tensor
    apart: float = 0.0

    def __post_init__(self) -> None:
        check_apart(self.apart)


@dataclass(frozen=True, eq=False)
class Customization:
    """What sampling adds to the base: adapters, learned tokens (placeholder -> [n, D]), and a guidance image's feature.

    feature [1, D] or None for no appearance guidance; feature_strength_uncond: what the settings' None stands for.
    regions: parts of the video with prompts of their own.
    """

    entries: tuple[StackEntry, ...] = ()
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    feature: Tensor | None = None
    feature_strength_uncond: float = 0.0
    regions: tuple[RegionPrompt, ...] = ()

    @property
    def acts(self) -> bool:
        """Whether the UNet needs a stack."""
        return bool(self.entries or self.regions)


NOTHING = Customization()


def customize(
    loaded: Sequence[TrainedAdapter],
    strengths: Sequence[float] | None = None,
    limits: Sequence[Mapping[str, Any]] | None = None,
    regions: Sequence[RegionPrompt] = (),
) -> Customization:
    """Put adapter files together: all adapters, all tokens, the first subject's first photograph as guidance image.

    strengths: one a file, 1 by default. limits: one a file, of where and when it acts: fields of `StackEntry`; of
    `window` and `guided_from` the file says what they leave open. regions: parts of the video with prompts of their
    own; a subject that they name, and that has no mask, acts in them alone.
    Raises ValueError when two files bring different vectors for one placeholder, and for a strength that is not finite.
    """
    strengths = [1.0] * len(loaded) if strengths is None else list(strengths)
    limits = [{} for _ in loaded] if limits is None else list(limits)
    for what, given in (("strengths", strengths), ("limits", limits)):
        if len(given) != len(loaded):
            raise ValueError(f"Got {len(given)} {what} for {len(loaded)} adapters; give one each.")
    for strength in strengths:
        if not math.isfinite(strength):
            raise ValueError(f"The strength of an adapter must be a finite number, got {strength}.")
    tokens: dict[str, Tensor] = {}
    for each in loaded:
        for name, vectors in each.tokens.items():
            if name in tokens and not torch.equal(tokens[name].cpu().float(), vectors.cpu().float()):
                raise ValueError(
                    f"Two files bring different tokens called {name}; train one of them under another placeholder."
                )
            tokens[name] = vectors
    entries = [
        StackEntry(each.adapter, strength, **{**_told(each), **_confined(each, regions), **limit})
        for each, strength, limit in zip(loaded, strengths, limits, strict=True)
        if each.adapter is not None
    ]
    shown = [each.features[:1] for each in loaded if each.features is not None and each.info.kind != "token"]
    guided = [(each, width) for each in loaded if (width := _guide_width(each)) is not None]
    blind = bool(guided) and all(saw_blank_images(motion) for motion, _ in guided)
    if blind and not shown:  # a zero image is what these motions know instead of none
        shown = [torch.zeros(1, guided[0][1])]
    return Customization(tuple(entries), tokens, shown[0] if shown else None, 1.0 if blind else 0.0, tuple(regions))


def _told(each: TrainedAdapter) -> dict[str, Any]:
    """What a file says of how it wants to be sampled."""
    return {"window": (each.info.acts_from, 1.0), "guided_from": each.info.guided_from}


def _confined(each: TrainedAdapter, regions: Sequence[RegionPrompt]) -> dict[str, Any]:
    """The mask of a subject that some regions' prompts name: where they are. Elsewhere it would bleed into others."""
    if each.info.kind != "identity" or not isinstance(each.adapter, Adapter):
        return {}
    named = [region.mask for region in regions if any(name in region.prompt for name in each.tokens)]
    if not named:
        return {}
    frames = max(mask.shape[0] if mask.ndim == 3 else 1 for mask in named)
    size = max(mask.shape[-2] for mask in named), max(mask.shape[-1] for mask in named)
    masks = [area_average(mask.float().reshape(-1, *mask.shape[-2:]), size).expand(frames, -1, -1) for mask in named]
    return {"mask": torch.stack(masks).amax(0)}


def _guide_width(each: TrainedAdapter) -> int | None:
    """Of the image features that a motion reads; None for what reads none."""
    return each.adapter.config.condition_dim if each.adapter is not None and each.info.kind == "motion" else None


def saw_blank_images(motion: TrainedAdapter) -> bool:
    """Whether a motion was trained with images dropped, so that its unconditional half knows a blank one."""
    return motion.info.extra.get("settings", {}).get("p_image_drop", 0.0) > 0
