"""What a file of an adapter, of weight deltas or of learned tokens says about itself, and with which UNet it goes."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..models.adapters import TRANSFORMER_KINDS, AdapterConfig, AnyAdapter, AnyConfig
from ..models.config import NetworkConfig, UNetConfig, temporal_convolutions, text_layers, transformer_sites
from ..models.deltas import TEMPORAL_CONV, DeltaConfig, weight_shapes
from ..models.families import config_from
from ..models.frame_attention import FrameAttentionConfig
from ..models.image_config import ImageUNetConfig
from ..safety.limits import LIMITS, MOST_CHANNELS, json_object, line, parsed, real, short, whole

FORMAT = "dreamvideo-adapter"
FORMAT_VERSION = 3  # the newest that is read; a file has the oldest that holds what is in it
BASES = {UNetConfig.family: "a ModelScope text-to-video UNet", ImageUNetConfig.family: "a Stable Diffusion image UNet"}
ACTS_FROM, GUIDED_FROM = "acts_from", "guided_from"  # what is told in `extra`: see `models.stack.StackEntry`
MOST_RUN = 200_000  # characters of a run file that an adapter tells
CONFIGS: Mapping[str, type[AdapterConfig | DeltaConfig]] = {
    DeltaConfig.kind: DeltaConfig,
    FrameAttentionConfig.kind: FrameAttentionConfig,
}
KINDS = (*TRANSFORMER_KINDS, *CONFIGS, "token")


@dataclass(frozen=True)
class AdapterInfo:
    """What a file says about itself.

    kind: "identity" or "motion" for an adapter, "weights" for weight deltas, "tune_a_video" for what
    that learns of a clip, "token" for learned token vectors alone.
    base_fingerprint: of the UNet it was trained on, "" where unknown (the authors' files do not say).
    token_layers: for how many layers its tokens have vectors of their own; None for ordinary ones. Told by the tokens.
    run: the run file, in TOML, that makes it again from its data and base; "" where the file does not tell.
    """

    kind: str
    adapter_config: AnyConfig | None = None
    unet_config: NetworkConfig | None = None
    base_fingerprint: str = ""
    class_word: str = ""
    placeholder: str = ""
    captions: tuple[str, ...] = ()
    steps: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    token_layers: int | None = None
    run: str = ""

    def __str__(self) -> str:
        """E.g. "identity adapter for <wolf> (plushie), 800 steps"."""
        own = {"token": "learned token", "weights": "set of weight deltas", "tune_a_video": "Tune-A-Video of a clip"}
        words = own.get(self.kind, f"{self.kind} adapter")
        words += f" for {self.placeholder}" if self.placeholder else ""
        words += f" ({self.class_word})" if self.class_word else ""
        return words + (f", {self.steps} steps" if self.steps is not None else "")

    @property
    def acts_from(self) -> float:
        """Where sampling begins to take it: the start of its window, see `models.stack.StackEntry`."""
        return self.extra.get(ACTS_FROM, 0.0)

    @property
    def guided_from(self) -> float:
        """Where sampling begins to guide towards it: see `models.stack.StackEntry`."""
        return self.extra.get(GUIDED_FROM, 1.0)

    @property
    def format_version(self) -> int:
        """Which version of the format holds it.

        Frame vectors and residuals of convolutions came with the second, tokens with a vector a layer and image bases
        with the third.
        """
        image = self.unet_config is not None and self.unet_config.family != UNetConfig.family
        if image or self.token_layers is not None:
            return 3
        return self.adapter_config.format_version if isinstance(self.adapter_config, AdapterConfig) else 1

    def to_metadata(self) -> dict[str, str]:
        """Safetensors metadata: text fields as they are, the others as JSON, and a sentence for human readers."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {name: values[name] and values[name].to_dict() for name in ("adapter_config", "unet_config")}
        values["format_version"] = self.format_version
        texts = {key: value if isinstance(value, str) else _json(value) for key, value in values.items()}
        for name in ("run", "token_layers"):  # what the first version did not have, where there is none
            if not values[name]:
                del texts[name]
        return {"format": FORMAT, "description": f"DreamVideo {self}", **self._modelspec(), **texts}

    def _modelspec(self) -> dict[str, str]:
        """What model managers show of a file (Stability AI's ModelSpec); no date: same weights, same bytes."""
        told = {
            "sai_model_spec": "1.0.1",
            "architecture": f"{self._base_model}/dreamvideo-{self.kind}",
            "implementation": "https://github.com/dreamvideo/dreamvideo",
            "title": self.placeholder or self.class_word or f"DreamVideo {self.kind}",
            "description": str(self),
            "trigger_phrase": self.placeholder,
        }
        if "width" in self.extra and "height" in self.extra:
            told["resolution"] = f"{self.extra['width']}x{self.extra['height']}"
        return {f"modelspec.{name}": text for name, text in told.items() if text}

    @property
    def _base_model(self) -> str:
        image = self.unet_config is not None and self.unet_config.family != UNetConfig.family
        return "stable-diffusion-v1" if image else "modelscope-text-to-video"

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> AdapterInfo:
        """Raises ValueError where the metadata is not of this format."""
        given = {item.name: metadata[item.name] for item in fields(cls) if item.name in metadata}
        family = CONFIGS.get(given.get("kind", ""), AdapterConfig)
        texts = ("kind", "base_fingerprint", "class_word", "placeholder")
        if "kind" not in given:
            raise ValueError("it names no kind")
        values: dict[str, Any] = {name: line(name, given[name]) for name in texts if name in given}
        if "run" in given:
            values["run"] = line("run", given["run"], most=MOST_RUN, breaks=True)
        if "format_version" in metadata:
            whole("format_version", parsed(metadata["format_version"]), 10**6)
        for name, check in _CHECKS.items():
            if name in given and (value := parsed(given[name])) is not None:
                values[name] = check(name, value)
        for name, read in (("adapter_config", family.from_dict), ("unet_config", config_from)):
            if name in given and (value := parsed(given[name])) is not None:
                values[name] = read(json_object(name, value))
        if not values.get("placeholder"):  # older files name one for motions, too, which learn nothing from it
            values["class_word"] = ""
        return cls(**values)


def _captions(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is a list of texts, not {short(value)}")
    return tuple(line("a caption", caption, most=10_000, breaks=True) for caption in value)


def _extra(name: str, value: object) -> dict[str, Any]:
    extra = json_object(name, value)
    settings = json_object("settings", extra.get("settings", {}))
    real("p_image_drop", settings.get("p_image_drop", 0.0), 0, 1)
    real(ACTS_FROM, extra.get(ACTS_FROM, 0.0), 0, 0.99)
    real(GUIDED_FROM, extra.get(GUIDED_FROM, 1.0), 0, 1)
    return extra


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "captions": _captions,
    "steps": lambda name, value: whole(name, value, int(LIMITS["steps"].most), 0),
    "learning_rate": lambda name, value: real(name, value, 0),
    "token_layers": lambda name, value: whole(name, value, MOST_CHANNELS),
    "seed": lambda name, value: whole(name, value, int(LIMITS["seed"].most), 0),
    "extra": _extra,
}


@dataclass(frozen=True, eq=False)
class TrainedAdapter:
    """A file's contents. tokens: placeholder -> [n, D], or [L, n, D] with a vector a layer.

    features: image features of the photographs, [n, D].
    """

    adapter: AnyAdapter | None
    info: AdapterInfo
    tokens: dict[str, Tensor]
    features: Tensor | None


def check_fits(
    info: AdapterInfo,
    unet_config: NetworkConfig,
    fingerprint: str | None = None,
    *,
    kind: str | None = None,
    same_base: Callable[[str, str], bool] = operator.eq,
) -> None:
    """Raise ValueError, saying what the file is, where it does not go with a UNet or is not of the `kind` asked for.

    fingerprint: of the UNet's weights; None, or a file that does not name its base, compares the architecture only.
    same_base: compares two fingerprints, with whatever tolerance they need.
    """
    if kind is not None and info.kind != kind:
        raise ValueError(f"This file is of kind {info.kind} ({info}), but one of kind {kind} is wanted here.")
    theirs = info.unet_config
    if theirs is not None and theirs.family != unet_config.family:
        raise ValueError(
            f"This {info} is for another kind of base: it was made for {BASES[theirs.family]} and this is "
            f"{BASES[unet_config.family]}; load the base it was trained on, or train it again on this one."
        )
    if theirs is not None and theirs.context_dim != unet_config.context_dim:
        raise ValueError(
            f"This {info} is for another base: it was made for text states of width {theirs.context_dim}, "
            f"but this base has {unet_config.context_dim}."
        )
    layers = len(text_layers(unet_config))
    if info.token_layers not in (None, layers):
        raise ValueError(
            f"This {info} is for another base: its word has vectors for {info.token_layers} layers that read the text, "
            f"but this base has {layers}."
        )
    if theirs is not None and info.kind != "token" and places(info, theirs) != places(info, unet_config):
        fits, has = (describe(places(info, config)) for config in (theirs, unet_config))
        raise ValueError(f"This {info} is for another base: it fits {fits}, but this base has {has}.")
    if fingerprint and info.base_fingerprint and not same_base(info.base_fingerprint, fingerprint):
        raise ValueError(
            f"This {info} is for another base: one of the same architecture with other weights; "
            "load the base it was trained on, or take it all the same (other_base, on the command line --other-base)."
        )


def places(info: AdapterInfo, unet_config: NetworkConfig) -> dict[str, Any]:
    """Where a file's tensors sit: transformer or convolution -> width, or weight -> shape."""
    config = info.adapter_config
    if isinstance(config, DeltaConfig):
        return weight_shapes(unet_config, config.weights)
    if config is not None and not config.sublayers:
        return {site.name: site.channels for site in temporal_convolutions(unet_config)}
    kind = TRANSFORMER_KINDS[info.kind]
    return {site.name: site.width for site in transformer_sites(unet_config) if site.kind == kind}


def describe(places: Mapping[str, Any]) -> str:
    if any(isinstance(place, torch.Size) for place in places.values()):
        return f"{len(places)} weights of {sum(shape.numel() for shape in places.values()):,} numbers"
    widths = "/".join(str(width) for width in sorted(set(places.values())))
    what = "temporal convolutions" if any(TEMPORAL_CONV in name for name in places) else "transformers"
    return f"{len(places)} {what} of width {widths}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
