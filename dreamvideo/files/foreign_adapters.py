"""Files that other programs wrote: the authors' `.pth` containers, text embeddings of every kind."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.adapters import ADAPTER_NAMES, AdapterConfig, AnyAdapter
from ..models.config import NetworkConfig
from ..models.deltas import WeightDelta
from ..safety.limits import LIMITS, short
from ..safety.paths import atomic_path
from .adapter_info import AdapterInfo, TrainedAdapter
from .adapter_tensors import adapter_place, assemble, check_specs, check_tokens, read_all, without_stop
from .pickles import StoredTensor, TensorSpec

# What a file that is no adapter may be, by a part of its keys; the first match speaks.
FOREIGN = (
    (
        r"motion_modules\..*lora",
        "a motion LoRA of AnimateDiff, which is merged into the motion module (dreamvideo convert MODULE OUT "
        "--lora FILE)",
    ),
    (
        r"attentions\..*\.processor\..*lora",
        "AnimateDiff's domain adapter, which is merged into the image model (dreamvideo convert CHECKPOINT OUT "
        "--lora FILE)",
    ),
    (r"lora", "LoRA weights"),
    (r"motion_modules\.", "a motion module of AnimateDiff, a part of a base (--motion-module)"),
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


def save_authors_adapter(path: str | os.PathLike[str], adapter: AnyAdapter, step: int) -> None:
    """Write the authors' container: {'state_dict': parameters by name, 'step'}. It keeps no metadata.

    Raises ValueError for a serial adapter, which the container would pass off as parallel, and for what it cannot hold:
    weight deltas, frame vectors, residuals of convolutions.
    """
    if isinstance(adapter, WeightDelta):
        raise ValueError("The authors' adapter files hold no weight deltas; save them as .safetensors.")
    if adapter.config.placement != "parallel":
        raise ValueError("The authors' adapter files cannot tell a serial adapter; save it as .safetensors.")
    if adapter.config.format_version > 1:
        raise ValueError(
            "The authors' adapter files hold no frame vectors nor residuals of convolutions; save it as .safetensors."
        )
    state = {key: nn.Parameter(value.detach().cpu().clone()) for key, value in adapter.state_dict().items()}
    _write_torch(path, {"state_dict": state, "step": step})


def save_authors_embedding(path: str | os.PathLike[str], vector: Tensor, token: str = "*", token_id: int = 265) -> None:
    """Write the authors' text embedding: vectors [n, D] for a token, with its id in the CLIP vocabulary."""
    vectors = nn.ParameterDict({token: nn.Parameter(vector.detach().cpu().clone())})
    _write_torch(path, {"string_to_token": {token: torch.tensor(token_id)}, "string_to_param": vectors})


def _write_torch(path: str | os.PathLike[str], contents: dict[str, Any]) -> None:
    with atomic_path(path) as part, open(part, "wb") as file:  # a file object: a path's name would go into the archive
        torch.save(contents, file)


def embedding_in(path: Path, contents: Mapping[Any, Any]) -> dict[str, Any] | None:
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


def text_embedding(path: Path, tokens: Mapping[str, Any]) -> TrainedAdapter:
    unusable = f"{path.name}, a text embedding, is unusable"
    check_specs(tokens, unusable)
    tokens = {name: _as_rows(value) for name, value in tokens.items()}
    check_tokens(tokens, unusable, None)
    if not tokens or any(value.shape[0] > MOST_VECTORS for value in tokens.values()):
        raise ValueError(f"{unusable}: a token has 1 to {MOST_VECTORS} vectors.")
    vectors = read_all(tokens, unusable)
    return TrainedAdapter(None, AdapterInfo(kind="token", placeholder=next(iter(tokens))), vectors, None)


def _as_rows(value: StoredTensor) -> StoredTensor:
    """One vector [D] as one row [1, D]."""
    if len(value.shape) != 1:
        return value
    return StoredTensor((1, *value.shape), value.dtype, lambda: value.read()[None])


def authors_adapter(path: Path, state: Mapping[str, Any], step: Any, unet_config: NetworkConfig) -> TrainedAdapter:
    check_specs(state, f"{path.name}, an adapter of the authors' format, is unusable")
    steps = step if type(step) is int and 0 <= step <= LIMITS["steps"].most else None
    info = AdapterInfo(kind=_kind(path, state), unet_config=unet_config, steps=steps)
    info = replace(info, adapter_config=_infer_config(path, info.kind, state))
    return TrainedAdapter(assemble(path, info, state), info, {}, None)


def _kind(path: Path, state: Mapping[str, Any]) -> str:
    """Of an authors' adapter: the transformers' names tell spatial (`.1`) from temporal ones (`.2`)."""
    sites = {adapter_place(key)["site"] for key in state}
    temporal = {site == "input_blocks.0.1" or site.endswith(".2") for site in sites}
    if len(temporal) > 1:
        raise ValueError(f"{path.name} mixes an identity and a motion adapter; a file holds one of them.")
    return "motion" if temporal.pop() else "identity"


def _infer_config(path: Path, kind: str, state: Mapping[str, TensorSpec]) -> AdapterConfig:
    names = {adapter_place(key)["name"] + "_adapter" for key in state}
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
        raise ValueError(f"{path.name} is no usable adapter: {without_stop(error)}.") from error


def name_foreign(state: Any) -> str:
    if not isinstance(state, Mapping) or not state:
        return "no tensors"
    keys = [str(key) for key in state]
    for pattern, name in FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            return name
    return f"{len(keys)} entries such as {short(keys[0])}, of no kind known here"
