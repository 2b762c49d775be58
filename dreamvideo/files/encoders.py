"""Files of the text and image encoder and of the autoencoder: any layout -> state and config for their libraries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import isqrt
from typing import Any

import torch

from ..safety.limits import (
    LIMITS,
    MOST_BLOCKS,
    MOST_CHANNELS,
    MOST_LAYERS,
    MOST_LEVELS,
    MOST_VOCABULARY,
    bare,
    json_object,
    parsed,
    real,
    short,
    whole,
)
from ..safety.paths import PathLike
from .layouts import name_stranger
from .tensors import CheckpointError, StateDict, TensorFile, check_weights

Shape = tuple[int, ...]

CLIP_ANCHORS = ("token_embedding.weight", "visual.conv1.weight")
VAE_ANCHORS = {
    "ldm": "encoder.down.0.block.0.conv1.weight",
    "diffusers": "encoder.down_blocks.0.resnets.0.conv1.weight",
}
# LAION's largest image towers have heads wider than 64 channels, which no shape tells.
VISION_HEAD_WIDTH = {1280: 80, 1408: 88, 1664: 104}
_HALVES = {
    r"token_embedding\.weight$": "a text encoder without its image encoder",
    r"vision_model\.embeddings\.": "an image encoder without its text encoder",
}

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers before 0.14


def find_vae(names: Iterable[str]) -> tuple[str, str] | None:
    """(layout, prefix) of an autoencoder among these names, or None; a whole checkpoint has "first_stage_model."."""
    found = [
        (len(name), layout, name.removesuffix(anchor))
        for name in names
        for layout, anchor in VAE_ANCHORS.items()
        if name == anchor or name.endswith("." + anchor)
    ]
    return min(found)[1:] if found else None


def find_clip(names: Iterable[str]) -> str | None:
    """Prefix of an OpenCLIP model (both towers) among these names, or None."""
    names = set(names)
    text, image = CLIP_ANCHORS
    prefixes = sorted((name.removesuffix(image) for name in names if name.endswith(image)), key=len)
    return next((prefix for prefix in prefixes if prefix + text in names), None)


def stored_vae(path: PathLike) -> tuple[StateDict, dict[str, Any]]:
    """(state in the names of diffusers' AutoencoderKL, keyword arguments for it) of an autoencoder file.

    Takes the LDM layout (bare, or as first_stage_model in a whole Stable Diffusion checkpoint) and diffusers', its old
    attention names too. The config is safetensors metadata "vae_config" (JSON) or inferred. Names and shapes are looked
    at, and no tensor is read yet. Raises CheckpointError when the file is unusable, no such autoencoder or incomplete.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    state, config = open_vae(path)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in AutoencoderKL(**config).state_dict().items()}
    rename = _vae_renaming(state, config)
    return _named(state, wanted, rename, r"(to_q|to_k|to_v|to_out\.0)\.weight$", r"^(loss|model_ema)\."), config


def stored_clip(path: PathLike) -> tuple[StateDict, dict[str, Any]]:
    """(state in open_clip's names, keyword arguments embed_dim, vision_cfg, text_cfg of open_clip.model.CLIP).

    The config is safetensors metadata "open_clip_config" (JSON) or inferred from shapes; heads are 64 channels wide
    (80 and more in LAION's largest image towers). Names and shapes are looked at, and no tensor is read yet.
    Raises CheckpointError when the file is unusable or has only one of the two towers.
    """
    from open_clip.model import CLIP

    state, config = open_clip_file(path)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in CLIP(**config).state_dict().items()}
    # The last three are in OpenAI's own files.
    surplus = r"(^|\.)(attn_mask|logit_bias|input_resolution|context_length|vocab_size)$"
    return _named(state, wanted, str, None, surplus), config


def open_vae(path: PathLike) -> tuple[StateDict, dict[str, Any]]:
    """The autoencoder in a file under its stored names without prefix, not yet read, and its config."""
    file = TensorFile(path)
    found = find_vae(file.specs)
    if found is None:
        raise CheckpointError(f"{file.path} is {name_stranger(file.specs)}, not a Stable Diffusion autoencoder.")
    layout, prefix = found
    state = _without_prefix(file, prefix)
    if any(name.startswith("quantize.") for name in state.shapes):
        raise CheckpointError(f"{file.path} is a VQ autoencoder, not the KL autoencoder of Stable Diffusion.")
    return state, _config(file, "vae_config", _checked_vae, lambda: _infer_vae(state.shapes, layout))


def open_clip_file(path: PathLike) -> tuple[StateDict, dict[str, Any]]:
    """The OpenCLIP model in a file, not yet read, and its config."""
    file = TensorFile(path)
    prefix = find_clip(file.specs)
    if prefix is None:
        what = next((what for end, what in _HALVES.items() if any(map(re.compile(end).search, file.specs))), None)
        what = what or name_stranger(file.specs)
        raise CheckpointError(
            f"{file.path} is {what}, not an OpenCLIP file with text and image encoder (open_clip_pytorch_model.bin)."
        )
    state = _without_prefix(file, prefix)
    return state, _config(file, "open_clip_config", _checked_clip, lambda: _infer_clip(state.shapes))


def _without_prefix(file: TensorFile, prefix: str) -> StateDict:
    stored = {name.removeprefix(prefix): name for name in file.specs if name.startswith(prefix)}
    return StateDict(file, stored, {name: file.specs[old].shape for name, old in stored.items()})


def _config(
    file: TensorFile,
    key: str,
    check: Callable[[Mapping[str, Any]], dict[str, Any]],
    infer: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """The configuration in a file's metadata or, without one, what its shapes imply; after `check`."""
    if key in file.metadata:
        try:
            return check(json_object(key, parsed(file.metadata[key])))
        except ValueError as error:
            raise CheckpointError(f"{file.path}: its metadata is damaged: {str(error).rstrip('.')}.") from error
    try:
        return check(infer())
    except KeyError as error:
        missing = error.args[0]
        raise CheckpointError(f"{file.path} has no {missing}: it is incomplete or another architecture.") from error
    except ValueError as error:
        raise CheckpointError(f"{file.path} is not usable here: {str(error).rstrip('.')}.") from error
    except (IndexError, TypeError, ZeroDivisionError) as error:  # a tensor of another rank, or without numbers
        raise CheckpointError(f"{file.path} has tensors of shapes that no such network has.") from error


def _checked_vae(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of AutoencoderKL that a small enough network of the known blocks comes of."""
    channels = config.get("block_out_channels")
    if not isinstance(channels, (list, tuple)):
        raise ValueError("block_out_channels is a list of widths")
    levels = whole("the number of levels", len(channels), MOST_LEVELS)
    widths = tuple(whole("block_out_channels", width, MOST_CHANNELS) for width in channels)
    checked: dict[str, Any] = {"block_out_channels": widths}
    for name, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(name) not in ([block] * levels, (block,) * levels):
            raise ValueError(f"{name} is a list with {block} for each of {levels} levels")
        checked[name] = (block,) * levels
    most = {"layers_per_block": MOST_BLOCKS, "norm_num_groups": MOST_CHANNELS, "sample_size": int(LIMITS["width"].most)}
    most |= dict.fromkeys(("in_channels", "out_channels", "latent_channels"), MOST_CHANNELS)
    checked |= {name: whole(name, config[name], limit) for name, limit in most.items() if name in config}
    if "scaling_factor" in config:
        checked["scaling_factor"] = real("scaling_factor", config["scaling_factor"], 1e-6, 1e6)
    _check_known(config, checked)
    groups = checked.get("norm_num_groups", 32)
    if any(width % groups for width in widths):
        raise ValueError(f"its channels {widths} do not divide by {groups} norm groups")
    return checked


def _checked_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of open_clip's CLIP: plain transformers alone, for its other towers are fetched from the network."""
    sides = dict.fromkeys(("image_size", "patch_size"), int(LIMITS["width"].most))
    both = {"width": MOST_CHANNELS, "layers": MOST_LAYERS}
    vision = {**both, **sides, "head_width": MOST_CHANNELS}
    text = {**both, "context_length": MOST_CHANNELS, "vocab_size": MOST_VOCABULARY, "heads": MOST_CHANNELS}
    checked: dict[str, Any] = {"embed_dim": whole("embed_dim", config.get("embed_dim"), MOST_CHANNELS)}
    for name, most in (("vision_cfg", vision), ("text_cfg", text)):
        given = json_object(name, config.get(name))
        checked[name] = {key: whole(key, given[key], limit) for key, limit in most.items() if key in given}
        if "mlp_ratio" in given:
            checked[name]["mlp_ratio"] = real("mlp_ratio", given["mlp_ratio"], 0.01, 64)
        _check_known(given, checked[name])
    _check_known(config, checked)
    for tower, heads in (("vision_cfg", "head_width"), ("text_cfg", "heads")):
        width, parts = checked[tower].get("width"), checked[tower].get(heads, 1)
        if width is not None and width % parts:
            raise ValueError(f"{heads} {parts} does not divide the width {width}")
    return checked


def _check_known(config: Mapping[str, Any], checked: Mapping[str, Any]) -> None:
    unknown = [name for name in config if name not in checked]
    if unknown:
        raise ValueError(f"it names {short(unknown[0])}, which is not used here")


def _infer_vae(shapes: Mapping[str, Shape], layout: str) -> dict[str, Any]:
    down, block = ("down", "block") if layout == "ldm" else ("down_blocks", "resnets")
    pattern = re.compile(rf"encoder\.{down}\.(\d+)\.{block}\.(\d+)\.")
    blocks = [match.groups() for name in shapes if (match := pattern.match(name))]
    levels = 1 + max(int(level) for level, _ in blocks)
    channels = tuple(shapes[f"encoder.{down}.{level}.{block}.0.conv1.weight"][0] for level in range(levels))
    _, latent, *kernel = shapes["decoder.conv_in.weight"]
    if latent != 4 or len(kernel) != 2:
        raise ValueError(f"its latents have {latent} channels in {len(kernel)} dimensions and the UNet's have 4 in 2")
    if any(width % 32 for width in channels):
        raise ValueError(f'its channels {channels} do not divide by 32 norm groups and it has no metadata "vae_config"')
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": channels,
        "layers_per_block": 1 + max(int(index) for _, index in blocks),
        "latent_channels": latent,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    }


def _infer_clip(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    def layers(tower: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(rf"{tower}resblocks\.(\d+)\.", name))})

    def mlp_ratio(tower: str) -> float:
        hidden, width = shapes[f"{tower}resblocks.0.mlp.c_fc.weight"]
        return hidden / width

    text_width, embed_dim = shapes["text_projection"]
    width, _, patch, _ = shapes["visual.conv1.weight"]
    grid = isqrt(shapes["visual.positional_embedding"][0] - 1)
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": grid * patch,
            "patch_size": patch,
            "width": width,
            "layers": layers(r"visual\.transformer\."),
            "head_width": min(width, VISION_HEAD_WIDTH.get(width, 64)),
            "mlp_ratio": mlp_ratio("visual.transformer."),
        },
        "text_cfg": {
            "context_length": shapes["positional_embedding"][0],
            "vocab_size": shapes["token_embedding.weight"][0],
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": layers(r"transformer\."),
            "mlp_ratio": mlp_ratio("transformer."),
        },
    }


def _vae_renaming(state: StateDict, config: Mapping[str, Any]) -> Callable[[str], str]:
    """diffusers' name -> the name in this file."""
    if VAE_ANCHORS["ldm"] in state.shapes:
        last = len(config["block_out_channels"]) - 1
        return lambda name: ldm_name(name, last)
    if any(".attentions.0.query." in name for name in state.shapes):
        return lambda name: _replaced(name, _OLD_ATTENTION)
    return str


def ldm_name(name: str, last: int) -> str:
    """The name in latent-diffusion's AutoencoderKL of a tensor of diffusers'. last: index of the coarsest level."""
    if "mid_block.attentions.0." in name:
        return _replaced(name, _ATTENTION).replace("mid_block.attentions.0.", "mid.attn_1.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{last - int(m[1])}", name)
    name = re.sub(r"resnets\.(\d+)", r"block.\1", name)
    name = name.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")
    return name.replace("conv_shortcut.", "nin_shortcut.").replace("conv_norm_out.", "norm_out.")


def _replaced(name: str, modules: Mapping[str, str]) -> str:
    """`name` with the module before its leaf renamed."""
    for new, old in modules.items():
        if re.search(rf"\.attentions\.0\.{re.escape(new)}\.\w+$", name):
            return name.replace(f".{new}.", f".{old}.")
    return name


def _named(
    state: StateDict,
    wanted: Mapping[str, Shape],
    rename: Callable[[str], str],
    flattened: str | None,
    surplus: str,
) -> StateDict:
    """The tensors `wanted`, found under renamed names; `flattened` ones may be stored as 1x1 convolutions."""
    path, names = state.file.path, {name: rename(name) for name in wanted}
    missing = [old for old in names.values() if old not in state.shapes]
    unknown = [name for name in set(state.shapes) - set(names.values()) if not re.search(surplus, name)]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} of {len(wanted)} tensors (such as {missing[0]}).")
    if unknown:
        raise CheckpointError(f"{path} has tensors of another architecture (such as {bare(min(unknown))}).")
    for name, old in names.items():
        shape = state.shapes[old]
        if flattened and re.search(flattened, name) and shape[2:] == (1, 1):
            shape = shape[:2]
        if shape != wanted[name]:
            raise CheckpointError(f"{path}: {old} has shape {list(shape)} where {list(wanted[name])} is needed.")
    found = StateDict(state.file, {name: state.stored[old] for name, old in names.items()}, wanted)
    check_weights(path, found.specs)
    return found
