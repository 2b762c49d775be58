"""Files of an image encoder alone: CLIP's image tower as transformers, and ComfyUI's clip_vision, name it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

from ..safety.limits import LIMITS, MOST_CHANNELS, MOST_LAYERS, whole
from ..safety.paths import PathLike
from .encoders import VISION_HEAD_WIDTH
from .layouts import name_stranger
from .tensors import CheckpointError, StateDict, TensorFile
from .text_encoders import layer_shapes, tower_state

IMAGE_ANCHOR = "vision_model.embeddings.patch_embedding.weight"
PROJECTION = "visual_projection.weight"


def find_image(names: Iterable[str]) -> str | None:
    """Prefix of an image tower among these names, or None."""
    found = [name.removesuffix(IMAGE_ANCHOR) for name in names if name.endswith(IMAGE_ANCHOR)]
    return min(found, key=len) if found else None


def stored_image(path: PathLike) -> tuple[StateDict, dict[str, Any]]:
    """(state in transformers' names, config) of an image encoder's file: names and shapes are looked at, nothing read.

    config: width, layers, heads, hidden, activation, patch, size (both in pixels), projected. Shapes tell neither heads
    nor activation: towers as wide as LAION's (ViT-H, g, bigG) have theirs and "gelu", others 64 channels a head and
    "quick_gelu", as OpenAI's. Raises CheckpointError when the file is unusable, none, or not whole.
    """
    file = TensorFile(path)
    prefix = find_image(file.specs)
    if prefix is None:
        raise CheckpointError(f"{file.path} is {name_stranger(file.specs)}, not a CLIP image encoder.")
    stored = {name.removeprefix(prefix): name for name in file.specs if name.startswith(prefix)}
    shapes = {name: file.specs[old].shape for name, old in stored.items()}
    try:
        config = _config(shapes)
    except (ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{file.path} holds no image encoder that is usable here: {error}.") from error
    return tower_state(file, stored, image_shapes(config), "image encoder"), config


def image_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of an image tower with its projection: transformers' name -> shape."""
    width, patch = config["width"], config["patch"]
    embeddings = "vision_model.embeddings"
    found: dict[str, tuple[int, ...]] = {
        f"{embeddings}.class_embedding": (width,),
        f"{embeddings}.patch_embedding.weight": (width, 3, patch, patch),
        f"{embeddings}.position_embedding.weight": ((config["size"] // patch) ** 2 + 1, width),
        **layer_shapes("vision_model.encoder.layers", config),
        PROJECTION: (config["projected"], width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):  # transformers' spelling
        found |= {f"vision_model.{norm}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return found


def _config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if PROJECTION not in shapes:
        raise ValueError(f"it has no {PROJECTION}, and the projected feature is what guides")
    width, _, patch, _ = shapes[IMAGE_ANCHOR]
    layers = {match[1] for name in shapes if (match := re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name))}
    grid = isqrt(shapes["vision_model.embeddings.position_embedding.weight"][0] - 1)
    side = int(LIMITS["width"].most)
    config = {
        "width": whole("the width", width, MOST_CHANNELS),
        "layers": whole("the number of layers", len(layers), MOST_LAYERS),
        "heads": max(1, width // VISION_HEAD_WIDTH.get(width, 64)),
        "hidden": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        "activation": "gelu" if width in VISION_HEAD_WIDTH else "quick_gelu",
        "patch": whole("the patch", patch, side),
        "size": whole("the size", grid * patch, side),
        "projected": whole("the projection", shapes[PROJECTION][0], MOST_CHANNELS),
    }
    if width % config["heads"]:
        raise ValueError(f"{config['heads']} heads do not divide its width {width}")
    return config
