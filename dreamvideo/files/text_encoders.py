"""Files of a text encoder alone: CLIP's text tower as transformers names it, by itself or in a whole checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..safety.limits import MOST_CHANNELS, MOST_LAYERS, json_object, parsed, whole
from ..safety.paths import PathLike
from .layouts import name_stranger
from .tensors import CheckpointError, StateDict, TensorFile, check_weights

TEXT_ANCHOR = "text_model.embeddings.token_embedding.weight"
ACTIVATIONS = ("quick_gelu", "gelu")  # OpenAI's CLIP has the first
_LAYER = {
    "layer_norm1": ("width",),
    "self_attn.q_proj": ("width", "width"),
    "self_attn.k_proj": ("width", "width"),
    "self_attn.v_proj": ("width", "width"),
    "self_attn.out_proj": ("width", "width"),
    "layer_norm2": ("width",),
    "mlp.fc1": ("hidden", "width"),
    "mlp.fc2": ("width", "hidden"),
}


def find_text(names: Iterable[str]) -> str | None:
    """Prefix of a text tower among these names, or None; in a whole checkpoint it begins with "cond_stage_model."."""
    found = [name.removesuffix(TEXT_ANCHOR) for name in names if name.endswith(TEXT_ANCHOR)]
    return min(found, key=len) if found else None


def stored_text(path: PathLike) -> tuple[StateDict, dict[str, Any]]:
    """(state in transformers' names, config) of a text encoder's file: names and shapes are looked at, nothing is read.

    config: width, layers, heads, length (of a prompt), vocabulary, hidden, activation. The last and the heads are in
    safetensors metadata "text_config" (JSON) or OpenAI's: 64 channels a head, quick_gelu. Raises CheckpointError when
    the file is unusable, none, or not whole.
    """
    file = TensorFile(path)
    prefix = find_text(file.specs)
    if prefix is None:
        raise CheckpointError(f"{file.path} is {name_stranger(file.specs)}, not a CLIP text encoder.")
    stored = {name.removeprefix(prefix): name for name in file.specs if name.startswith(f"{prefix}text_model.")}
    shapes = {name: file.specs[old].shape for name, old in stored.items()}
    try:
        config = _config(file, shapes)
    except (ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{file.path} holds no text encoder that is usable here: {error}.") from error
    return tower_state(file, stored, text_shapes(config), "text encoder"), config


def tower_state(
    file: TensorFile, stored: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]], what: str
) -> StateDict:
    """The tensors of a tower, `stored` under which names: of these shapes all, or CheckpointError."""
    for name, shape in wanted.items():
        found = list(file.specs[stored[name]].shape) if name in stored else "missing"
        if found != list(shape):
            raise CheckpointError(f"{file.path}: of the {what} {name} is {found} where {list(shape)} is needed.")
    state = StateDict(file, {name: stored[name] for name in wanted}, wanted)
    check_weights(file.path, state.specs)
    return state


def text_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a text tower: transformers' name -> shape."""
    width = config["width"]
    embeddings = "text_model.embeddings"
    found: dict[str, tuple[int, ...]] = {
        f"{embeddings}.token_embedding.weight": (config["vocabulary"], width),
        f"{embeddings}.position_embedding.weight": (config["length"], width),
    }
    found |= layer_shapes("text_model.encoder.layers", config)
    for leaf in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{leaf}"] = (width,)
    return found


def layer_shapes(place: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a tower's layers, `layers` of them at `place`, text's or images'."""
    found: dict[str, tuple[int, ...]] = {}
    for index in range(config["layers"]):
        for part, sizes in _LAYER.items():
            shape = tuple(config[size] for size in sizes)
            found |= {f"{place}.{index}.{part}.weight": shape, f"{place}.{index}.{part}.bias": shape[:1]}
    return found


def _config(file: TensorFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    given = {}
    if "text_config" in file.metadata:
        given = json_object("text_config", parsed(file.metadata["text_config"]))
    vocabulary, width = shapes[TEXT_ANCHOR]
    layers = {match[1] for name in shapes if (match := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))}
    config = {
        "vocabulary": vocabulary,
        "width": whole("the width", width, MOST_CHANNELS),
        "length": shapes["text_model.embeddings.position_embedding.weight"][0],
        "layers": whole("the number of layers", len(layers), MOST_LAYERS),
        "hidden": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "heads": whole("heads", given.get("heads", max(1, width // 64)), MOST_CHANNELS),
        "activation": given.get("activation", ACTIVATIONS[0]),
    }
    if config["activation"] not in ACTIVATIONS:
        raise ValueError(f"its activation is {' or '.join(ACTIVATIONS)}")
    if width % config["heads"]:
        raise ValueError(f"{config['heads']} heads do not divide its width {width}")
    return config
