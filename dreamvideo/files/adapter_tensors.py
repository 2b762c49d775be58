"""The tensors of an adapter's file: checked by their shapes, read once, put together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.adapters import AnyAdapter, build_adapter
from ..models.config import NetworkConfig, text_layers
from ..models.deltas import TEMPORAL_CONV
from ..safety.limits import bare, line, short
from .adapter_info import AdapterInfo, describe
from .dtypes import is_finite, readable
from .pickle_machine import Unusable
from .pickles import StoredTensor, TensorSpec

ADAPTER_KEY = re.compile(
    r"(?P<site>(?:(?:input|output)_blocks\.\d+|middle_block)\.\d+|motion\.[\w.]+\.temporal_transformer)"
    r"\.transformer_blocks\.0"
    r"\.(?P<name>attn|cross_attn|ff)_adapter\.(?P<linear>down|up|condition)_linear\.(?:weight|bias)"
)


def adapter_place(key: str) -> re.Match[str]:
    """The parts of an adapter tensor's name. Raises ValueError for another tensor's."""
    found = ADAPTER_KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{short(key)} is no tensor of an adapter.")
    return found


def without_stop(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def assemble(path: Path, info: AdapterInfo, state: Mapping[str, StoredTensor]) -> AnyAdapter:
    """The adapter of an info with the weights of `state`, which are read once their shapes are right."""
    assert info.adapter_config is not None and info.unet_config is not None
    try:
        adapter = build_adapter(info.adapter_config, info.unet_config, device="meta")
    except ValueError as error:
        raise ValueError(f"{path.name} is no usable adapter: {without_stop(error)}.") from error
    wanted = {key: list(value.shape) for key, value in adapter.state_dict().items()}
    found = {key: list(value.shape) for key, value in state.items()}
    if found != wanted:
        raise ValueError(f"{path.name} ({info}) does not fit the UNet: {_difference(found, wanted)}.")
    adapter.load_state_dict(read_all(state, f"{path.name}, a {info}, is unusable"), assign=True)
    return adapter


def _difference(found: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> str:
    for sites in (_transformers, _convolutions):
        theirs, ours = sites(found), sites(wanted)
        if theirs and ours and theirs != ours:
            return f"the file is for {describe(theirs)}, the UNet has {describe(ours)}"
    key = next(key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key))
    return f"{bare(key)} is {found.get(key, 'missing')}, expected {wanted.get(key, 'no such tensor')}"


def _transformers(shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """Transformer -> width of the adapters beside it, as far as the tensors tell."""
    named = {key: ADAPTER_KEY.fullmatch(key) for key in shapes if key.endswith("down_linear.weight")}
    return {name["site"]: shapes[key][1] for key, name in named.items() if name and len(shapes[key]) == 2}


def _convolutions(shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """Temporal convolution -> channels of the residual beside it, as far as the tensors tell."""
    downs = {key: shape for key, shape in shapes.items() if TEMPORAL_CONV in key and key.endswith(".down")}
    return {key: shape[1] for key, shape in downs.items() if len(shape) == 3}


def check_tensors(tensors: Mapping[str, Tensor], subject: str) -> None:
    """Raise ValueError for what is not fit to be written."""
    check_specs({key: TensorSpec(tuple(value.shape), value.dtype) for key, value in tensors.items()}, subject)
    for key, value in tensors.items():
        if not is_finite(value):
            raise ValueError(f"{subject}: {bare(key)} holds NaN or infinite values.")


def check_specs(tensors: Mapping[Any, Any], subject: str) -> None:
    for key, value in tensors.items():
        if not isinstance(value, TensorSpec):
            what = f"a {value.what}" if isinstance(value, Unusable) else f"a {type(value).__name__}"
        elif not value.dtype.is_floating_point:
            what = f"a {str(value.dtype)} tensor"
        else:
            continue
        raise ValueError(f"{subject}: {bare(str(key))} is {what}, not a tensor of weights.")


def token_layers(tokens: Mapping[str, Any]) -> int | None:
    """For how many layers tokens have vectors of their own, [L, n, D]; None where all are ordinary ones, [n, D].

    Raises ValueError where they differ.
    """
    found = {rows.shape[0] for rows in tokens.values() if len(rows.shape) == 3}
    if len(found) > 1:
        raise ValueError(
            f"The tokens have vectors for {' and '.join(map(str, sorted(found)))} layers: take one of both."
        )
    return found.pop() if found else None


def check_tokens(
    tokens: Mapping[str, TensorSpec], subject: str, unet_config: NetworkConfig | None, layers: int | None = None
) -> None:
    """Raise ValueError unless they are vectors [n, D], or [layers, n, D], with names.

    D is what the UNet reads, where that is known, and so is for how many layers there are vectors.
    """
    if unet_config is not None and layers not in (None, most := len(text_layers(unet_config))):
        raise ValueError(
            f"{subject}: it tells of vectors for {layers} layers, and its UNet has {most} that read a text."
        )
    if layers is not None and all(len(vectors.shape) == 2 for vectors in tokens.values()):
        raise ValueError(f"{subject}: it tells of vectors for {layers} layers, and its tokens have none.")
    for name, vectors in tokens.items():
        if not name.strip():
            raise ValueError(f"{subject}: one of its tokens has no name.")
        try:
            line("a token's name", name)
        except ValueError as error:
            raise ValueError(f"{subject}: {error}.") from error
        layered = layers is not None and len(vectors.shape) == 3 and vectors.shape[0] == layers
        if not (layered or len(vectors.shape) == 2) or not vectors.elements:
            wanted = "[n, D]" if layers is None else f"[{layers}, n, D]"
            raise ValueError(f"{subject}: the vectors of {short(name)} are {list(vectors.shape)} and not {wanted}.")
        if unet_config is not None and vectors.shape[-1] != unet_config.context_dim:
            raise ValueError(
                f"{subject}: the vectors of {short(name)} are {vectors.shape[-1]} wide, "
                f"and its UNet reads text states of {unet_config.context_dim}."
            )
    if len({vectors.shape[-1] for vectors in tokens.values()}) > 1:
        raise ValueError(f"{subject}: its tokens are of several widths.")


def read_all(tensors: Mapping[str, StoredTensor], subject: str) -> dict[str, Tensor]:
    """The tensors themselves. Cloned: some systems cannot replace a file, as a training will, while it is mapped."""
    found = {}
    for key, value in tensors.items():
        tensor = value.read()
        found[key] = tensor.to(readable(tensor.dtype), copy=True).contiguous()
        if not is_finite(found[key]):
            raise ValueError(f"{subject}: {bare(key)} holds NaN or infinite values.")
    return found
