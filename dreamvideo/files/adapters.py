"""Files of trained adapters, weight deltas and learned tokens: our safetensors, and the authors' `.pth` containers.

A file says what it is: which adapter for which base, what it was trained on and how. For an identity it also carries
the learned token vectors and the photographs' image features, so that sampling needs nothing else. Nothing read here
runs code, and nothing is read before names and shapes have told that it fits.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.adapters import ADAPTER_NAMES, TRANSFORMER_KINDS, AdapterConfig, AnyAdapter, AnyConfig, build_adapter
from ..models.deltas import DeltaConfig, WeightDelta, weight_shapes
from ..models.unet import UNetConfig, transformer_sites
from ..safety.limits import MOST, bare, json_object, line, parsed, real, short, whole
from ..safety.paths import atomic_path
from .pickles import StoredTensor, TensorSpec, Unusable
from .tensors import CheckpointError, OpenFile, is_finite, open_file, readable, write_safetensors

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
    (r"^clip_[lgh]$", "a textual-inversion embedding for another text encoder (SDXL, SD3)"),
)
# Vectors of a token, as its embedding's own file holds them: as many as a prompt has places.
MOST_VECTORS = 75
# What a prompt can name a token by as it stands; another name is put between angle brackets.
PLACEHOLDER = re.compile(r"\*|<[^\s{}<>]+>")


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
        """Raises ValueError where the metadata is not of this format."""
        given = {item.name: metadata[item.name] for item in fields(cls) if item.name in metadata}
        family = DeltaConfig if given.get("kind") == DeltaConfig.kind else AdapterConfig
        texts = ("kind", "base_fingerprint", "class_word", "placeholder")
        if "kind" not in given:
            raise ValueError("it names no kind")
        values: dict[str, Any] = {name: line(name, given[name]) for name in texts if name in given}
        for name, check in _CHECKS.items():
            if name in given and (value := parsed(given[name])) is not None:
                values[name] = check(name, value)
        for name, config in (("adapter_config", family), ("unet_config", UNetConfig)):
            if name in given and (value := parsed(given[name])) is not None:
                values[name] = config.from_dict(json_object(name, value))
        return cls(**values)


def _captions(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is a list of texts, not {short(value)}")
    return tuple(line("a caption", caption, most=10_000, breaks=True) for caption in value)


def _extra(name: str, value: object) -> dict[str, Any]:
    settings = json_object("settings", json_object(name, value).get("settings", {}))
    real("p_image_drop", settings.get("p_image_drop", 0.0), 0, 1)
    return value


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "format_version": lambda name, value: whole(name, value, 10**6),
    "captions": _captions,
    "steps": lambda name, value: whole(name, value, int(MOST["steps"]), 0),
    "learning_rate": lambda name, value: real(name, value, 0),
    "seed": lambda name, value: whole(name, value, 2**64, 0),
    "extra": _extra,
}


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
    """Read one of our files, the authors' adapter (`.pth`), or a text embedding of any program, onto the CPU.

    Weights keep their dtype; 8-bit ones become float16, which holds them exactly. Text embeddings are the authors' and
    A1111's (`string_to_param`), diffusers' (`learned_embeds`) and ComfyUI's (`emb_params`); one that names no
    placeholder is called by its own name, such as <my-cat> for my-cat.safetensors.
    unet_config: the UNet that an authors' adapter has to fit, which its file does not describe; None for the full-size
    ModelScope UNet, for which they were made. Our files bring their own; see `check_fits`.
    Raises CheckpointError, in one sentence, for a file that is none of these, saying what it is where that is known,
    and ValueError for one of these that is damaged or does not fit.
    """
    path = Path(path)
    file = open_file(path)
    if file.metadata.get("format") == FORMAT:
        return _own(path, file)
    tokens = _embedding(path, file.contents)
    if tokens is not None:
        return _text_embedding(path, tokens)
    state = file.contents.get("state_dict", file.contents)
    if not file.tensors:
        raise CheckpointError(f"{path.name} is no adapter: it holds no tensors.")
    if isinstance(state, Mapping) and state and all(isinstance(k, str) and ADAPTER_KEY.fullmatch(k) for k in state):
        return _authors_adapter(path, state, file.contents.get("step"), unet_config or UNetConfig())
    raise CheckpointError(f"{path.name} is no adapter: it holds {_foreign(state)}.")


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


def _own(path: Path, file: OpenFile) -> LoadedAdapter:
    metadata, tensors = file.metadata, file.tensors
    version = metadata.get("format_version", "")
    if version.isdecimal() and len(version) < 10 and int(version) > FORMAT_VERSION:
        raise ValueError(f"{path.name} has format version {version}; this DreamVideo reads up to {FORMAT_VERSION}.")
    damaged = f"{path.name} is a DreamVideo adapter, and its metadata is damaged"
    try:
        info = AdapterInfo.from_metadata(metadata)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{damaged}: {_without_stop(error)}.") from error
    kind_of_config = info.adapter_config.kind if info.adapter_config and info.unet_config else "token"
    if info.kind not in KINDS or info.kind != kind_of_config:
        raise ValueError(f"{damaged}: kind {short(info.kind)} with a configuration of kind {kind_of_config!r}.")
    unusable = f"{path.name}, a {info}, is unusable"
    _check_specs(tensors, unusable)
    tokens = {key.removeprefix(TOKEN_PREFIX): value for key, value in tensors.items() if key.startswith(TOKEN_PREFIX)}
    _check_tokens(tokens, unusable, info.unet_config)
    features = tensors.get(FEATURES)
    if features is not None and (len(features.shape) != 2 or not features.elements):
        raise ValueError(f"{unusable}: its image features are {list(features.shape)} and not [n, D].")
    pattern = DELTA_KEY if info.kind == DeltaConfig.kind else ADAPTER_KEY
    state = {key: value for key, value in tensors.items() if pattern.fullmatch(key)}
    adapter = None if info.kind == "token" else _assemble(path, info, state)
    if info.kind == "token" and not tokens:
        raise ValueError(f"{unusable}: it holds no token.")
    shown = None if features is None else _read_all({FEATURES: features}, unusable)[FEATURES]
    return LoadedAdapter(adapter, info, _read_all(tokens, unusable), shown)


def _without_stop(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _embedding(path: Path, contents: Mapping[Any, Any]) -> dict[str, Any] | None:
    """Placeholder -> vectors of a text embedding, whoever wrote it; None for a file of another kind."""
    if "string_to_param" in contents:  # the authors' and A1111's
        vectors, name = contents["string_to_param"], contents.get("name")
        if not isinstance(vectors, Mapping):
            raise ValueError(f"{path.name} is a damaged text embedding: it names no token.")
        name = name if isinstance(name, str) and name.strip() else None
        return {_placeholder(name if name and key == "*" else key): value for key, value in vectors.items()}
    if "emb_params" in contents:
        return {_placeholder(path.stem): contents["emb_params"]}
    named = "learned_embeds" in path.name
    if contents and all(_is_token(key, value, named) for key, value in contents.items()):
        return {_placeholder(key): value for key, value in contents.items()}
    return None


def _is_token(name: object, value: object, named: bool) -> bool:
    """Whether a tensor looks like a token's in a file of diffusers. named: whether the file's name says so."""
    vectors = isinstance(value, StoredTensor) and len(value.shape) in (1, 2)
    return isinstance(name, str) and vectors and (named or bool(re.fullmatch(r"<[^<>]+>", name)))


def _placeholder(name: object) -> str:
    """The name by which prompts call a token: as it is where that is unmistakable, else <name>."""
    name = str(name) if isinstance(name, (str, int)) else ""
    if PLACEHOLDER.fullmatch(name) or not name.strip():
        return name
    core = re.sub(r"[^\w.-]+", "-", name).strip("-")
    return f"<{core or 'token'}>"


def _text_embedding(path: Path, tokens: Mapping[str, Any]) -> LoadedAdapter:
    unusable = f"{path.name}, a text embedding, is unusable"
    _check_specs(tokens, unusable)
    tokens = {name: _as_rows(value) for name, value in tokens.items()}
    _check_tokens(tokens, unusable, None)
    if not tokens or any(value.shape[0] > MOST_VECTORS for value in tokens.values()):
        raise ValueError(f"{unusable}: a token has 1 to {MOST_VECTORS} vectors.")
    vectors = _read_all(tokens, unusable)
    return LoadedAdapter(None, AdapterInfo(kind="token", placeholder=next(iter(tokens))), vectors, None)


def _as_rows(value: StoredTensor) -> StoredTensor:
    """One vector [D] as one row [1, D]."""
    if len(value.shape) != 1:
        return value
    return StoredTensor((1, *value.shape), value.dtype, lambda: value.read()[None])


def _authors_adapter(path: Path, state: Mapping[str, Any], step: Any, unet_config: UNetConfig) -> LoadedAdapter:
    _check_specs(state, f"{path.name}, an adapter of the authors' format, is unusable")
    steps = step if type(step) is int and 0 <= step <= MOST["steps"] else None
    info = AdapterInfo(kind=_kind(path, state), unet_config=unet_config, steps=steps)
    info = replace(info, adapter_config=_infer_config(path, info.kind, state))
    return LoadedAdapter(_assemble(path, info, state), info, {}, None)


def _kind(path: Path, state: Mapping[str, Any]) -> str:
    """Of an authors' adapter: the transformers' names tell spatial (`.1`) from temporal ones (`.2`)."""
    sites = {ADAPTER_KEY.fullmatch(key)["site"] for key in state}
    temporal = {site == "input_blocks.0.1" or site.endswith(".2") for site in sites}
    if len(temporal) > 1:
        raise ValueError(f"{path.name} mixes an identity and a motion adapter; a file holds one of them.")
    return "motion" if temporal.pop() else "identity"


def _infer_config(path: Path, kind: str, state: Mapping[str, TensorSpec]) -> AdapterConfig:
    names = {ADAPTER_KEY.fullmatch(key)["name"] + "_adapter" for key in state}
    matrices = {key: tuple(value.shape) for key, value in state.items() if len(value.shape) == 2}
    downs = [shape for key, shape in matrices.items() if key.endswith("down_linear.weight")]
    conditions = {shape[1] for key, shape in matrices.items() if key.endswith("condition_linear.weight")}
    hidden = {shape[0] for shape in downs}
    halves = all(shape[0] == shape[1] // 2 for shape in downs)
    if not downs or len(conditions) > 1 or (len(hidden) > 1 and not halves):
        raise ValueError(
            f"{path.name}, a file of the authors' adapter format (kind {kind}), is incomplete or mixed: "
            f"{len(state)} tensors, bottleneck widths {sorted(hidden)}, condition widths {sorted(conditions)}."
        )
    try:
        return AdapterConfig(
            kind=kind,
            sublayers=tuple(sublayer for sublayer, name in ADAPTER_NAMES.items() if name in names),
            hidden=None if halves else hidden.pop(),
            condition_dim=conditions.pop() if conditions else None,
        )
    except ValueError as error:
        raise ValueError(f"{path.name} is no usable adapter: {_without_stop(error)}.") from error


def _assemble(path: Path, info: AdapterInfo, state: Mapping[str, StoredTensor]) -> AnyAdapter:
    """The adapter of an info with the weights of `state`, which are read once their shapes are right."""
    try:
        adapter = build_adapter(info.adapter_config, info.unet_config, device="meta")
    except ValueError as error:
        raise ValueError(f"{path.name} is no usable adapter: {_without_stop(error)}.") from error
    wanted = {key: list(value.shape) for key, value in adapter.state_dict().items()}
    found = {key: list(value.shape) for key, value in state.items()}
    if found != wanted:
        raise ValueError(f"{path.name} ({info}) does not fit the UNet: {_difference(found, wanted)}.")
    adapter.load_state_dict(_read_all(state, f"{path.name}, a {info}, is unusable"), assign=True)
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


def _check_tensors(tensors: Mapping[str, Tensor], subject: str) -> None:
    """Raise ValueError for what is not fit to be written."""
    _check_specs({key: TensorSpec(tuple(value.shape), value.dtype) for key, value in tensors.items()}, subject)
    for key, value in tensors.items():
        if not is_finite(value):
            raise ValueError(f"{subject}: {bare(key)} holds NaN or infinite values.")


def _check_specs(tensors: Mapping[Any, Any], subject: str) -> None:
    for key, value in tensors.items():
        if not isinstance(value, TensorSpec):
            what = f"a {value.what}" if isinstance(value, Unusable) else f"a {type(value).__name__}"
        elif not value.dtype.is_floating_point:
            what = f"a {str(value.dtype)} tensor"
        else:
            continue
        raise ValueError(f"{subject}: {bare(str(key))} is {what}, not a tensor of weights.")


def _check_tokens(tokens: Mapping[str, TensorSpec], subject: str, unet_config: UNetConfig | None) -> None:
    """Raise ValueError unless they are vectors [n, D] with names; D is what the UNet reads, where that is known."""
    for name, vectors in tokens.items():
        if not name.strip():
            raise ValueError(f"{subject}: one of its tokens has no name.")
        try:
            line("a token's name", name)
        except ValueError as error:
            raise ValueError(f"{subject}: {error}.") from error
        if len(vectors.shape) != 2 or not vectors.elements:
            raise ValueError(f"{subject}: the vectors of {short(name)} are {list(vectors.shape)} and not [n, D].")
        if unet_config is not None and vectors.shape[1] != unet_config.context_dim:
            raise ValueError(
                f"{subject}: the vectors of {short(name)} are {vectors.shape[1]} wide, "
                f"and its UNet reads text states of {unet_config.context_dim}."
            )
    if len({vectors.shape[1] for vectors in tokens.values()}) > 1:
        raise ValueError(f"{subject}: its tokens are of several widths.")


def _read_all(tensors: Mapping[str, StoredTensor], subject: str) -> dict[str, Tensor]:
    """The tensors themselves. Cloned: some systems cannot replace a file, as a training will, while it is mapped."""
    found = {}
    for key, value in tensors.items():
        tensor = value.read()
        found[key] = tensor.to(readable(tensor.dtype), copy=True).contiguous()
        if not is_finite(found[key]):
            raise ValueError(f"{subject}: {bare(key)} holds NaN or infinite values.")
    return found


def _foreign(state: Any) -> str:
    if not isinstance(state, Mapping) or not state:
        return "no tensors"
    keys = [str(key) for key in state]
    for pattern, name in FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            return name
    return f"{len(keys)} entries such as {short(keys[0])}, of no kind known here"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
