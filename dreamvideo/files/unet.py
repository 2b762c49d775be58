"""A UNet checkpoint of any layout -> config and state in the original names -> UNet; and any layout written again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ..models.blocks import AttentionFunction
from ..models.config import UNetConfig
from ..models.unet import UNet
from ..safety.limits import bare, json_object, parsed
from ..safety.paths import PathLike, check_writable, keep_apart, write_json
from .dtypes import readable
from .layouts import (
    diffusers_name,
    diffusers_shape,
    find_layout,
    ignored,
    infer_config,
    name_relative,
    name_stranger,
    original_shapes,
    plain_name,
    reshapable,
)
from .tensors import CheckpointError, StateDict, TensorFile, TensorSpec, check_weights, write_tensors

LAYOUTS = ("original", "diffusers", "vgen")
SAMPLE_SIZE = 32  # latent cells each way of the 256 pixels that ModelScope was trained on
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class UNetFile:
    """A UNet checkpoint, opened and not yet read.

    state: every tensor under its original name and shape, read when asked for; state.stream() reads them all in turn.
    layout: "original", "diffusers" or "vgen" (original names in a container, as VGen saves). dtype: of most numbers.
    notes: what is unusual about the file or was left unread, for people.
    """

    path: Path
    layout: str
    config: UNetConfig
    state: StateDict
    notes: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.state.dtype

    @property
    def parameters(self) -> int:
        return self.state.parameters


def read_unet(path: PathLike, *, head_dim: int | None = None) -> UNetFile:
    """Open the checkpoint file of a ModelScope text-to-video UNet in any layout, prefix and container.

    The config is read from safetensors metadata ("unet_config", JSON) or inferred from names and shapes; `head_dim` is
    the width of an attention head where neither tells (see `infer_config`). A related refiner (MS-Vid2Vid, "SR600") has
    the same names and shapes and cannot be told apart.
    Raises CheckpointError when the file is unusable, another architecture, or lacks tensors.
    """
    file = TensorFile(path)
    found = find_layout(file.specs)
    if found is None:
        raise CheckpointError(f"{file.path} is {name_stranger(file.specs)}, not a ModelScope text-to-video UNet.")
    layout, prefix = found
    stored = {plain_name(name.removeprefix(prefix)): name for name in file.specs if name.startswith(prefix)}
    shapes = {name: file.specs[old].shape for name, old in stored.items()}
    relative = name_relative(stored, shapes)
    if relative:
        raise CheckpointError(f"{file.path} is {relative}, not a ModelScope text-to-video UNet.")
    try:
        config = _given_config(file) or infer_config(shapes, layout, head_dim)
        wanted = original_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"{file.path} is not a UNet this program runs: {str(error).rstrip('.')}.") from error
    rename = (lambda name: diffusers_name(name, config.res_blocks)) if layout == "diffusers" else str
    names = {name: rename(name) for name in wanted}
    _check_complete(file.path, names, wanted, shapes)
    known, unknown = ignored(set(stored) - set(names.values()))
    if unknown:
        raise CheckpointError(
            f"{file.path} has {len(unknown)} tensors that a ModelScope text-to-video UNet has not "
            f"({', '.join(map(bare, sorted(unknown)[:3]))}): it is another architecture."
        )
    state = StateDict(file, {name: stored[new] for name, new in names.items()}, wanted)
    check_weights(file.path, state.specs)
    notes = _notes(prefix, known, state)
    return UNetFile(file.path, "vgen" if file.wrapped and layout == "original" else layout, config, state, notes)


def load_unet(
    path: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    head_dim: int | None = None,
    operations: Any = nn,
    attention: AttentionFunction = scaled_dot_product_attention,
) -> UNet:
    """The UNet of a checkpoint file, frozen and in eval mode. dtype: None for the file's own (8-bit: float16).

    Weights are held once: each tensor is read, cast and moved by itself into a UNet that had none.
    Raises CheckpointError as `read_unet` does, and when there are NaN or infinite weights.
    """
    return build_unet(read_unet(path, head_dim=head_dim), device, dtype, operations, attention)


def build_unet(
    found: UNetFile,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = nn,
    attention: AttentionFunction = scaled_dot_product_attention,
) -> UNet:
    """As `load_unet`, of a file that was opened already."""
    dtype = dtype or readable(found.dtype)
    unet = UNet(found.config, operations=operations, attention=attention, device="meta", dtype=dtype)
    unet.load_state_dict(dict(found.state.stream(device, dtype)), assign=True)
    return unet.eval().requires_grad_(False)


def convert(
    source: PathLike,
    target: PathLike,
    layout: str = "original",
    dtype: torch.dtype | None = None,
    *,
    head_dim: int | None = None,
    sample_size: int = SAMPLE_SIZE,
) -> Path:
    """Write the UNet of `source` in another layout and dtype (None: the file's own); returns the file written.

    target: a .safetensors file (written tensor by tensor), a PyTorch file (.pth, .bin, ...: holds the weights in memory
    once), or for "diffusers" a name without suffix: a pipeline folder that gets unet/ with its config.json, which says
    that it samples latents of `sample_size` each way.
    "vgen" is the original names in {"state_dict": ..., "step": 0}. Raises CheckpointError as `read_unet` does, and
    ValueError for a target that is the source.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"There is no layout {layout!r}; there are {', '.join(LAYOUTS)}.")
    found, target = read_unet(source, head_dim=head_dim), Path(target)
    config, about = found.config, None
    rename: Callable[[str], str] = str
    reshape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda name, shape: shape  # noqa: E731
    if layout == "diffusers":
        rename, reshape = (lambda name: diffusers_name(name, config.res_blocks)), diffusers_shape
        if not target.suffix:
            about = diffusers_config(config, sample_size)
            target = target / "unet" / DIFFUSERS_FILE
            check_writable(target.with_name("config.json"))
    keep_apart([target], [source, found.path])
    check_writable(target)
    dtype = dtype or readable(found.dtype)
    specs = {rename(name): TensorSpec(reshape(name, spec.shape), dtype) for name, spec in found.state.specs.items()}
    tensors = (
        (rename(name), tensor.reshape(reshape(name, tuple(tensor.shape))))
        for name, tensor in found.state.stream(dtype=dtype)
    )
    write_tensors(target, specs, tensors, {"unet_config": json.dumps(config.to_dict())}, wrap=layout == "vgen")
    if about is not None:  # after the weights, which may yet be refused
        write_json(target.with_name("config.json"), about)
    return target


def diffusers_config(config: UNetConfig, sample_size: int = SAMPLE_SIZE) -> dict:
    """config.json of diffusers' UNet3DConditionModel. ValueError where diffusers cannot express the architecture."""
    if config.first_heads != 8:
        raise CheckpointError(
            f"diffusers runs the first temporal transformer with 8 heads and this UNet has {config.first_heads}: "
            "give the target a suffix to write the tensors alone."
        )
    down = ["CrossAttnDownBlock3D" if attends else "DownBlock3D" for attends in config.attention_levels]
    up = ["CrossAttnUpBlock3D" if attends else "UpBlock3D" for attends in reversed(config.attention_levels)]
    return {
        "_class_name": "UNet3DConditionModel",
        "sample_size": sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": config.res_blocks,
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": config.head_dim,
        "norm_num_groups": config.norm_groups,
    }


def _given_config(file: TensorFile) -> UNetConfig | None:
    text = file.metadata.get("unet_config")
    if text is None:
        return None
    try:
        return UNetConfig.from_dict(json_object("unet_config", parsed(text)))
    except ValueError as error:
        raise CheckpointError(f"its metadata is damaged: {str(error).rstrip('.')}") from error


def _check_complete(
    path: Path, names: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    missing = [new for new in names.values() if new not in shapes]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the UNet's {len(names)} tensors (such as {missing[0]}): "
            "it is incomplete or another architecture."
        )
    for name, new in names.items():
        if not reshapable(name, shapes[new], wanted[name]):
            raise CheckpointError(
                f"{path}: {new} has shape {list(shapes[new])} where the UNet needs {list(wanted[name])}: "
                "it is another architecture."
            )


def _notes(prefix: str, known: Mapping[str, int], state: StateDict) -> tuple[str, ...]:
    notes = [f"tensor names begin with {bare(prefix)}"] if prefix else []
    reshaped = sum(state.file.specs[old].shape != state.shapes[name] for name, old in state.stored.items())
    if reshaped:
        notes.append(f"{reshaped} projections stored in another shape")
    notes += [f"not used: {what} ({count} tensors)" for what, count in known.items()]
    outside = sum(not name.startswith(prefix) for name in state.file.specs)
    if outside:
        notes.append(f"not used: {outside} tensors of other models")
    return tuple(notes)
