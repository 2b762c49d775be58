"""Files of trained adapters, weight deltas and learned tokens: our safetensors, and the authors' `.pth` containers.

A file says what it is: which adapter for which base, what it was trained on and how. For an identity it also carries
the learned token vectors and the photographs' image features, so that sampling needs nothing else. Nothing read here
runs code, and nothing is read before names and shapes have told that it fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..models.adapters import AnyAdapter
from ..models.config import NetworkConfig, UNetConfig
from ..safety.limits import bare, short
from ..safety.paths import PathLike
from .adapter_info import FORMAT, FORMAT_VERSION, KINDS, AdapterInfo, TrainedAdapter
from .adapter_tensors import (
    ADAPTER_KEY,
    assemble,
    check_specs,
    check_tensors,
    check_tokens,
    read_all,
    token_layers,
    without_stop,
)
from .dtypes import is_finite
from .foreign_adapters import authors_adapter, embedding_in, name_foreign, text_embedding
from .tensors import CheckpointError, OpenFile, open_file, write_safetensors

TOKEN_PREFIX = "token."
FEATURES = "features"


def save_adapter(
    path: PathLike,
    adapter: AnyAdapter | None,
    info: AdapterInfo,
    tokens: Mapping[str, Tensor] | None = None,
    features: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a safetensors file, atomically; the same contents give the same bytes.

    adapter: None for learned tokens alone (kind "token"). tokens: placeholder -> [n, D] or [L, n, D]; features: [n, D].
    dtype: of the adapter's weights in the file, where they fit into it; their own by default.
    Raises ValueError for weights that are not finite and for an info of another kind.
    """
    kind = "token" if adapter is None else adapter.config.kind
    if info.kind != kind:
        raise ValueError(f"The info describes a {info.kind} file, but what is to be saved is of kind {kind}.")
    if adapter is not None:
        info = replace(info, adapter_config=adapter.config, unet_config=adapter.unet_config)
    info = replace(info, token_layers=token_layers(tokens or {}))
    tensors = _rounded(adapter.state_dict(), dtype) if adapter is not None else {}
    tensors |= {TOKEN_PREFIX + name: vectors for name, vectors in (tokens or {}).items()}
    if features is not None:
        tensors[FEATURES] = features
    check_tensors(tensors, f"{Path(path).name} is not written")
    write_safetensors(path, tensors, info.to_metadata())


def save_trained(path: PathLike, trained: TrainedAdapter, dtype: torch.dtype | None = None) -> None:
    """As `save_adapter`, of what training returned or a file held."""
    save_adapter(path, trained.adapter, trained.info, trained.tokens, trained.features, dtype)


def _rounded(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    found = {name: weight if dtype is None else weight.to(dtype) for name, weight in weights.items()}
    return found if all(map(is_finite, found.values())) else dict(weights)  # too large for half precision


def load_adapter(path: PathLike, unet_config: NetworkConfig | None = None) -> TrainedAdapter:
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
    tokens = embedding_in(path, file.contents)
    if tokens is not None:
        return text_embedding(path, tokens)
    state = file.contents.get("state_dict", file.contents)
    if not file.tensors:
        raise CheckpointError(f"{path.name} is no adapter: it holds no tensors.")
    if isinstance(state, Mapping) and state and all(isinstance(k, str) and ADAPTER_KEY.fullmatch(k) for k in state):
        made_for = unet_config if isinstance(unet_config, UNetConfig) else UNetConfig()
        return authors_adapter(path, state, file.contents.get("step"), made_for)
    raise CheckpointError(f"{path.name} is no adapter: it holds {name_foreign(state)}.")


def read_info(path: PathLike) -> AdapterInfo | None:
    """What one of our files says of itself, without its tensors; None for any other file.

    Raises ValueError for one of ours whose metadata is damaged, and CheckpointError for what holds no tensors.
    """
    file = open_file(path)
    return _info(Path(path), file) if file.metadata.get("format") == FORMAT else None


def _info(path: Path, file: OpenFile) -> AdapterInfo:
    version = file.metadata.get("format_version", "")
    if version.isdecimal() and len(version) < 10 and int(version) > FORMAT_VERSION:
        raise ValueError(f"{path.name} has format version {version}; this DreamVideo reads up to {FORMAT_VERSION}.")
    try:
        return AdapterInfo.from_metadata(file.metadata)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{_damaged(path)}: {without_stop(error)}.") from error


def _damaged(path: Path) -> str:
    return f"{path.name} is a DreamVideo adapter, and its metadata is damaged"


def _own(path: Path, file: OpenFile) -> TrainedAdapter:
    info, tensors = _info(path, file), file.tensors
    kind_of_config = info.adapter_config.kind if info.adapter_config and info.unet_config else "token"
    if info.kind not in KINDS or info.kind != kind_of_config:
        raise ValueError(f"{_damaged(path)}: kind {short(info.kind)} with a configuration of kind {kind_of_config!r}.")
    unusable = f"{path.name}, a {info}, is unusable"
    check_specs(tensors, unusable)
    tokens = {key.removeprefix(TOKEN_PREFIX): value for key, value in tensors.items() if key.startswith(TOKEN_PREFIX)}
    check_tokens(tokens, unusable, info.unet_config, info.token_layers)
    features = tensors.get(FEATURES)
    if features is not None and (len(features.shape) != 2 or not features.elements):
        raise ValueError(f"{unusable}: its image features are {list(features.shape)} and not [n, D].")
    state = {key: value for key, value in tensors.items() if key != FEATURES and not key.startswith(TOKEN_PREFIX)}
    adapter = None if info.kind == "token" else assemble(path, info, state)
    if info.kind == "token" and not tokens:
        raise ValueError(f"{unusable}: it holds no token.")
    if info.kind == "token" and state:
        raise ValueError(f"{unusable}: {bare(min(state))} is no token.")
    shown = None if features is None else read_all({FEATURES: features}, unusable)[FEATURES]
    return TrainedAdapter(adapter, info, read_all(tokens, unusable), shown)
