"""Files of trained adapters, weight deltas and learned tokens: our safetensors, and the authors' `.pth` containers.

A file says what it is: which adapter for which base, what it was trained on and how. For an identity it also carries
the learned token vectors and the photographs' image features, so that sampling needs nothing else. Nothing read here
runs code: pickles are opened with `weights_only`.
"""

from __future__ import annotations

import json
import operator
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .adapters import (
    ADAPTER_NAMES,
    TRANSFORMER_KINDS,
    AdapterConfig,
    AnyAdapter,
    AnyConfig,
    build_adapter,
)
from .deltas import DeltaConfig, WeightDelta, weight_shapes
from .files import atomic_path
from .tensor_files import write_safetensors
from .unet import UNetConfig, transformer_sites

FORMAT = "dreamvideo-adapter"
FORMAT_VERSION = 1
KINDS = (*TRANSFORMER_KINDS, DeltaConfig.kind, "token")
TOKEN_PREFIX = "token."
FEATURES = "features"

ADAPTER_KEY = re.compile(
    r"(?P<site>(?:(?:input|output)_blocks\.\d+|middle_block)\.\d+)\.transformer_blocks\.0"
    r"\.(?P<name>attn|cross_attn|ff)_adapter\.(?P<linear>down|up|condition)_linear\.(?:weight|bias)"
)
DELTA_KEY = re.compile(r".+\.(?:weight|bias)\.(?:delta|down|up)")
# What a file that is no adapter may be, by a part of its keys; the first match speaks.
FOREIGN = (
    (r"lora", "LoRA weights"),
    (r"temopral_conv|temp_convs", "a whole text-to-video UNet, a base and no adapter"),
    (r"input_blocks\.0\.0\.|down_blocks\.0\.", "a diffusion model or autoencoder"),
    (r"first_stage_model|decoder\.conv_out|decoder\.up", "an autoencoder (VAE)"),
    (r"visual\.|token_embedding|text_model", "a CLIP encoder"),
    (r"emb_params|clip_[lgh]$", "a textual-inversion embedding of another program"),
)


@dataclass(frozen=True)
class AdapterInfo:
    """What a file says about itself.

    kind: "identity" or "motion" for an adapter, "weights" for weight deltas, "token" for learned token vectors alone.
    base_fingerprint: of the UNet it was trained on, "" where unknown (the authors' files do not say).
    """

    kind: str
    format_version: int = FORMAT_VERSION
    adapter_config: AnyConfig | None = None
    unet_config: UNetConfig | None = None
    base_fingerprint: str = ""
    class_word: str = ""
    placeholder: str = ""
    captions: tuple[str, ...] = ()
    steps: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """E.g. "identity adapter for <wolf> (plushie), 800 steps"."""
        words = {"token": "learned token", "weights": "set of weight deltas"}.get(self.kind, f"{self.kind} adapter")
        words += f" for {self.placeholder}" if self.placeholder else ""
        words += f" ({self.class_word})" if self.class_word else ""
        return words + (f", {self.steps} steps" if self.steps is not None else "")

    def to_metadata(self) -> dict[str, str]:
        """Safetensors metadata: text fields as they are, the others as JSON, and a sentence for human readers."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {name: values[name] and values[name].to_dict() for name in ("adapter_config", "unet_config")}
        texts = {key: value if isinstance(value, str) else _json(value) for key, value in values.items()}
        return {"format": FORMAT, "description": f"DreamVideo {self}", **texts}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> AdapterInfo:
        """Raises ValueError, KeyError or TypeError where the metadata is not of this format."""
        texts = {"kind", "base_fingerprint", "class_word", "placeholder"}
        names = [item.name for item in fields(cls)]
        values = {key: metadata[key] if key in texts else json.loads(metadata[key]) for key in names if key in metadata}
        config = DeltaConfig if values.get("kind") == DeltaConfig.kind else AdapterConfig
        parse = {"adapter_config": config.from_dict, "unet_config": UNetConfig.from_dict, "captions": tuple}
        values |= {key: parse[key](values[key]) for key in parse if values.get(key) is not None}
        return cls(**values)


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """A file's contents. tokens: placeholder -> [n, D]; features: image features of the photographs, [n, D]."""

    adapter: AnyAdapter | None
    info: AdapterInfo
    tokens: dict[str, Tensor]
    features: Tensor | None


def check_fits(
    info: AdapterInfo,
    unet_config: UNetConfig,
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
    if theirs is not None and theirs.context_dim != unet_config.context_dim:
        raise ValueError(
            f"This {info} is for another base: it was made for text states of width {theirs.context_dim}, "
            f"but this base has {unet_config.context_dim}."
        )
    if theirs is not None and info.kind != "token" and _places(info, theirs) != _places(info, unet_config):
        fits, has = (_describe(_places(info, config)) for config in (theirs, unet_config))
        raise ValueError(f"This {info} is for another base: it fits {fits}, but this base has {has}.")
    if fingerprint and info.base_fingerprint and not same_base(info.base_fingerprint, fingerprint):
        raise ValueError(
            f"This {info} is for another base: one of the same architecture with other weights; "
            "load the base it was trained on, or take it all the same (other_base, on the command line --other-base)."
        )


def save_adapter(
    path: str | os.PathLike[str],
    adapter: AnyAdapter | None,
    info: AdapterInfo,
    tokens: Mapping[str, Tensor] | None = None,
    features: Tensor | None = None,
) -> None:
    """Write a safetensors file, atomically; the same contents give the same bytes.

    adapter: None for learned tokens alone (kind "token"). tokens: placeholder -> [n, D]; features: [n, D].
    Raises ValueError for weights that are not finite and for an info of another kind.
    """
    kind = "token" if adapter is None else adapter.config.kind
    if info.kind != kind:
        raise ValueError(f"The info describes a {info.kind} file, but what is to be saved is of kind {kind}.")
    if adapter is not None:
        info = replace(info, adapter_config=adapter.config, unet_config=adapter.unet_config)
    tensors = dict(adapter.state_dict()) if adapter is not None else {}
    tensors |= {TOKEN_PREFIX + name: vectors for name, vectors in (tokens or {}).items()}
    if features is not None:
        tensors[FEATURES] = features
    _check_tensors(tensors, f"{Path(path).name} is not written")
    write_safetensors(path, tensors, info.to_metadata())


def load_adapter(path: str | os.PathLike[str], unet_config: UNetConfig | None = None) -> LoadedAdapter:
    """Read one of our files, or the authors' adapter (`.pth`) or text embedding, onto the CPU in its own dtype.

    unet_config: the UNet that an authors' adapter has to fit, which its file does not describe; None for the full-size
    ModelScope UNet, for which they were made. Our files bring their own; see `check_fits`.
    Raises ValueError, in one sentence, for anything else: what the file is, or what is wrong with it.
    """
    path = Path(path)
    contents, metadata = _read(path)
    if metadata.get("format") == FORMAT:
        return _own(path, contents, metadata)
    if "string_to_param" in contents:
        return _authors_embedding(path, contents)
    state = contents.get("state_dict", contents)
    if isinstance(state, Mapping) and state and all(ADAPTER_KEY.fullmatch(str(key)) for key in state):
        return _authors_adapter(path, state, contents.get("step"), unet_config or UNetConfig())
    raise ValueError(f"{path.name} is no adapter: it holds {_foreign(state)}.")


def save_authors_adapter(path: str | os.PathLike[str], adapter: AnyAdapter, step: int) -> None:
    """Write the authors' container: {'state_dict': parameters by name, 'step'}. It keeps no metadata.

    Raises ValueError for a serial adapter, which the container would pass off as parallel, and for weight deltas.
    """
    if isinstance(adapter, WeightDelta):
        raise ValueError("The authors' adapter files hold no weight deltas; save them as .safetensors.")
    if adapter.config.placement != "parallel":
        raise ValueError("The authors' adapter files cannot tell a serial adapter; save it as .safetensors.")
    state = {key: nn.Parameter(value.detach().cpu().clone()) for key, value in adapter.state_dict().items()}
    _write_torch(path, {"state_dict": state, "step": step})


def save_authors_embedding(path: str | os.PathLike[str], vector: Tensor, token: str = "*", token_id: int = 265) -> None:
    """Write the authors' text embedding: vectors [n, D] for a token, with its id in the CLIP vocabulary."""
    vectors = nn.ParameterDict({token: nn.Parameter(vector.detach().cpu().clone())})
    _write_torch(path, {"string_to_token": {token: torch.tensor(token_id)}, "string_to_param": vectors})


def _write_torch(path: str | os.PathLike[str], contents: dict[str, Any]) -> None:
    with atomic_path(path) as part, open(part, "wb") as file:  # a file object: a path's name would go into the archive
        torch.save(contents, file)


def _own(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoadedAdapter:
    version = metadata.get("format_version", "")
    if version.isdigit() and int(version) > FORMAT_VERSION:
        raise ValueError(f"{path.name} has format version {version}; this DreamVideo reads up to {FORMAT_VERSION}.")
    try:
        info = AdapterInfo.from_metadata(metadata)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is a DreamVideo adapter whose metadata is damaged: {error}") from error
    kind_of_config = info.adapter_config.kind if info.adapter_config and info.unet_config else "token"
    if info.kind not in KINDS or info.kind != kind_of_config:
        raise ValueError(f"{path.name} is a DreamVideo adapter whose metadata is damaged: kind {info.kind!r}.")
    _check_tensors(tensors, f"{path.name}, a {info}, is unusable")
    tokens = {key.removeprefix(TOKEN_PREFIX): value for key, value in tensors.items() if key.startswith(TOKEN_PREFIX)}
    pattern = DELTA_KEY if info.kind == DeltaConfig.kind else ADAPTER_KEY
    state = {key: value for key, value in tensors.items() if pattern.fullmatch(key)}
    adapter = None if info.kind == "token" else _assemble(path, info, state)
    return LoadedAdapter(adapter, info, tokens, tensors.get(FEATURES))


def _authors_embedding(path: Path, contents: Mapping[str, Any]) -> LoadedAdapter:
    try:
        tokens = {str(name): vectors for name, vectors in contents["string_to_param"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is a damaged text embedding: {error}.") from error
    _check_tensors(tokens, f"{path.name}, a text embedding, is unusable")
    if not tokens or any(vectors.ndim != 2 for vectors in tokens.values()):
        raise ValueError(f"{path.name} is a text embedding without token vectors of shape [n, D].")
    info = AdapterInfo(kind="token", placeholder=next(iter(tokens)))
    return LoadedAdapter(None, info, {name: vectors.detach() for name, vectors in tokens.items()}, None)


def _authors_adapter(path: Path, state: Mapping[str, Any], step: Any, unet_config: UNetConfig) -> LoadedAdapter:
    _check_tensors(state, f"{path.name}, an adapter of the authors' format, is unusable")
    info = AdapterInfo(kind=_kind(path, state), unet_config=unet_config, steps=step if isinstance(step, int) else None)
    info = replace(info, adapter_config=_infer_config(path, info.kind, state))
    return LoadedAdapter(_assemble(path, info, state), info, {}, None)


def _kind(path: Path, state: Mapping[str, Any]) -> str:
    """Of an authors' adapter: the transformers' names tell spatial (`.1`) from temporal ones (`.2`)."""
    sites = {ADAPTER_KEY.fullmatch(key)["site"] for key in state}
    temporal = {site == "input_blocks.0.1" or site.endswith(".2") for site in sites}
    if len(temporal) > 1:
        raise ValueError(f"{path.name} mixes an identity and a motion adapter; a file holds one of them.")
    return "motion" if temporal.pop() else "identity"


def _infer_config(path: Path, kind: str, state: Mapping[str, Tensor]) -> AdapterConfig:
    names = {ADAPTER_KEY.fullmatch(key)["name"] + "_adapter" for key in state}
    matrices = {key: tuple(value.shape) for key, value in state.items() if value.ndim == 2}
    downs = [shape for key, shape in matrices.items() if key.endswith("down_linear.weight")]
    conditions = {shape[1] for key, shape in matrices.items() if key.endswith("condition_linear.weight")}
    hidden = {shape[0] for shape in downs}
    halves = all(shape[0] == shape[1] // 2 for shape in downs)
    if not downs or len(conditions) > 1 or (len(hidden) > 1 and not halves):
        raise ValueError(
            f"{path.name}, a file of the authors' adapter format (kind {kind}), is incomplete or mixed: "
            f"{len(state)} tensors, bottleneck widths {sorted(hidden)}, condition widths {sorted(conditions)}."
        )
    return AdapterConfig(
        kind=kind,
        sublayers=tuple(sublayer for sublayer, name in ADAPTER_NAMES.items() if name in names),
        hidden=None if halves else hidden.pop(),
        condition_dim=conditions.pop() if conditions else None,
    )


def _assemble(path: Path, info: AdapterInfo, state: Mapping[str, Tensor]) -> AnyAdapter:
    """The adapter of an info, holding `state` itself: nothing is copied."""
    adapter = build_adapter(info.adapter_config, info.unet_config, device="meta")
    wanted = {key: list(value.shape) for key, value in adapter.state_dict().items()}
    found = {key: list(value.shape) for key, value in state.items()}
    if found != wanted:
        raise ValueError(f"{path.name} ({info}) does not fit the UNet: {_difference(found, wanted)}.")
    adapter.load_state_dict({key: value.detach() for key, value in state.items()}, assign=True)
    return adapter


def _difference(found: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> str:
    theirs, ours = (
        {
            ADAPTER_KEY.fullmatch(key)["site"]: shape[1]
            for key, shape in shapes.items()
            if key.endswith("down_linear.weight") and len(shape) == 2
        }
        for shapes in (found, wanted)
    )
    if theirs != ours:
        return f"the file is for {_describe(theirs)}, the UNet has {_describe(ours)}"
    key = next(key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key))
    return f"{key} is {found.get(key, 'missing')}, expected {wanted.get(key, 'no such tensor')}"


def _places(info: AdapterInfo, unet_config: UNetConfig) -> dict[str, Any]:
    """Where a file's tensors sit: transformer -> width, of an adapter's kind, or weight -> shape."""
    if isinstance(info.adapter_config, DeltaConfig):
        return weight_shapes(unet_config, info.adapter_config.weights)
    kind = TRANSFORMER_KINDS[info.kind]
    return {site.name: site.width for site in transformer_sites(unet_config) if site.kind == kind}


def _describe(places: Mapping[str, Any]) -> str:
    if any(isinstance(place, torch.Size) for place in places.values()):
        return f"{len(places)} weights of {sum(shape.numel() for shape in places.values()):,} numbers"
    widths = "/".join(str(width) for width in sorted(set(places.values())))
    return f"{len(places)} transformers of width {widths}"


def _check_tensors(tensors: Mapping[str, Any], subject: str) -> None:
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = f"a {value.dtype} tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"{subject}: {key} is {what}, not a tensor of weights.")
        if not value.isfinite().all():
            raise ValueError(f"{subject}: {key} holds NaN or infinite values.")


def _foreign(state: Any) -> str:
    if not isinstance(state, Mapping) or not state:
        return "no tensors"
    keys = [str(key) for key in state]
    for pattern, name in FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            return name
    return f"{len(keys)} entries such as {keys[0]!r}, of no kind known here"


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Contents and safetensors metadata of a file, told apart by its first bytes, not by its name."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise ValueError(f"{path} is empty.")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head.startswith((b"PK", b"\x80")):  # a zip archive or a bare pickle
        return _read_torch(path), {}
    raise ValueError(f"{path.name} is neither a safetensors nor a PyTorch file.")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # Cloned: some systems cannot replace a file, as a training run will, while it is mapped.
            return {name: file.get_tensor(name).clone() for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or truncated: {error}.") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([nn.ParameterDict]):
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is refused: it holds Python objects other than tensors (or is damaged); "
            "such a file could run code, so nothing in it was."
        ) from error
    except Exception as error:  # a damaged archive makes the reader raise whatever it stumbles over
        raise ValueError(f"{path.name} is damaged or truncated: PyTorch cannot read it.") from error
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path.name} is no adapter: it holds a {type(contents).__name__}, not tensors by name.")
    return contents


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
