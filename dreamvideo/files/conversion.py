"""UNets and motion modules written again: in another layout, in another precision, with LoRAs merged in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.animatediff import frame_positions
from ..models.config import NetworkConfig, UNetConfig
from ..models.image_config import ImageUNetConfig
from ..safety.paths import PathLike, check_writable, keep_apart, write_json
from .dtypes import readable
from .image_layouts import CHECKPOINT_PREFIX, image_diffusers_name
from .layouts import Shape, diffusers_name, diffusers_shape
from .loras import LoraFile, check_merges, read_lora
from .motion_modules import LCM_POSITIONS, MotionFile, is_motion_module, read_motion_module
from .motion_names import motion_diffusers_name
from .tensors import CheckpointError, StateDict, TensorFile, TensorSpec, write_tensors
from .unet import read_unet

LAYOUTS = ("original", "diffusers", "vgen")
SAMPLE_SIZE = 32  # latent cells each way of the 256 pixels that ModelScope was trained on
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Writing:
    """How a state is written: under which names, in which shapes, with which metadata.

    lora_name: the name that LoRAs call a tensor by. about: config.json of a folder of diffusers, which is called
    `folder` in a pipeline. more: tensors that the file has besides.
    """

    state: StateDict
    what: str
    rename: Callable[[str], str]
    lora_name: Callable[[str], str] = str
    reshape: Callable[[str, Shape], Shape] = lambda name, shape: shape
    metadata: dict[str, str] = field(default_factory=dict)
    about: Callable[[], dict[str, Any]] = dict
    folder: str = "unet"
    more: dict[str, Tensor] = field(default_factory=dict)


def convert(
    source: PathLike,
    target: PathLike,
    layout: str = "original",
    dtype: torch.dtype | None = None,
    *,
    head_dim: int | None = None,
    sample_size: int | Callable[[NetworkConfig], int] = SAMPLE_SIZE,
    loras: Sequence[PathLike] = (),
) -> Path:
    """Write the UNet or motion module of `source` in another layout and dtype (None: the file's own); returns the file.

    target: a .safetensors file (written tensor by tensor), a PyTorch file (.pth, .bin, ...: holds the weights in memory
    once), or for "diffusers" a name without suffix: a pipeline folder that gets unet/, or for a motion module the
    folder of a MotionAdapter itself, with its config.json, which says that a UNet samples latents of `sample_size` each
    way, a number or what gives one for its config. "vgen" is a ModelScope UNet's original names in {"state_dict": ...,
    "step": 0}. loras: motion LoRAs for a motion module, the v3 domain adapter for an image UNet: added to its weights.
    Raises CheckpointError as `read_unet` does, and ValueError for a target that is the source.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"There is no layout {layout!r}; there are {', '.join(LAYOUTS)}.")
    target, about = Path(target), None
    plan = _plan(source, layout, head_dim, sample_size)
    if layout == "diffusers" and not target.suffix:
        about = plan.about()
        target = target / plan.folder / DIFFUSERS_FILE
        check_writable(target.with_name("config.json"))
    merging = [read_lora(path) for path in loras]
    names = {plan.lora_name(name): spec.shape for name, spec in plan.state.specs.items()}
    for lora in merging:
        check_merges(lora, names, plan.what)
    keep_apart([target], [source, plan.state.file.path, *loras])
    check_writable(target)
    dtype = dtype or readable(plan.state.dtype)
    specs = {
        plan.rename(name): TensorSpec(plan.reshape(name, spec.shape), dtype) for name, spec in plan.state.specs.items()
    }
    specs |= {name: TensorSpec(tuple(tensor.shape), dtype) for name, tensor in plan.more.items()}
    write_tensors(target, specs, _tensors(plan, merging, dtype), plan.metadata, wrap=layout == "vgen")
    if about is not None:  # after the weights, which may yet be refused
        write_json(target.with_name("config.json"), about)
    return target


def _tensors(plan: Writing, merging: Sequence[LoraFile], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in plan.state.stream(dtype=dtype):
        for lora in merging:
            tensor = lora.merged(plan.lora_name(name), tensor)
        yield plan.rename(name), tensor.reshape(plan.reshape(name, tuple(tensor.shape)))
    for name, tensor in plan.more.items():
        yield name, tensor.to(dtype)


def _plan(
    source: PathLike, layout: str, head_dim: int | None, sample_size: int | Callable[[NetworkConfig], int]
) -> Writing:
    names = TensorFile(source).specs
    if is_motion_module(names) and not any("conv_in" in name or "input_blocks" in name for name in names):
        return _motion_module(read_motion_module(source), layout)
    found = read_unet(source, head_dim=head_dim)
    config, told = found.config, {"unet_config": json.dumps(found.config.to_dict())}
    side = sample_size if isinstance(sample_size, int) else sample_size(config)
    about = lambda: diffusers_config(config, side)  # noqa: E731
    if isinstance(config, ImageUNetConfig):
        _no_vgen(layout, "an image UNet")
        theirs = lambda name: image_diffusers_name(name, config.res_blocks)  # noqa: E731
        ours = lambda name: f"{CHECKPOINT_PREFIX}{name}"  # noqa: E731
        rename = theirs if layout == "diffusers" else ours
        return Writing(found.state, "image UNet", rename, theirs, metadata=told, about=about)
    if layout != "diffusers":
        return Writing(found.state, "ModelScope UNet", str, metadata=told)
    rename = lambda name: diffusers_name(name, config.res_blocks)  # noqa: E731
    return Writing(found.state, "ModelScope UNet", rename, reshape=diffusers_shape, metadata=told, about=about)


def _motion_module(motion: MotionFile, layout: str) -> Writing:
    _no_vgen(layout, "a motion module")
    positions = f".{'pos_embed' if layout == 'diffusers' else 'pos_encoder'}.pe"
    rename = motion_diffusers_name if layout == "diffusers" else str
    more = {}
    if motion.frames != LCM_POSITIONS or motion.version != "AnimateLCM":  # whose files have none
        for name, shape in motion.state.shapes.items():
            if name.endswith(".to_q.weight"):
                attention = name.removesuffix(".to_q.weight")
                more[f"{attention}{positions}"] = frame_positions(motion.frames, shape[0], torch.zeros(1))[None]
    if layout == "diffusers":  # a block's positions belong to the block there
        more = {f"{rename(name.partition('.attention_blocks.')[0])}{positions}": each for name, each in more.items()}
    return Writing(motion.state, "motion module", rename, about=lambda: motion_config(motion), folder="", more=more)


def _no_vgen(layout: str, what: str) -> None:
    if layout == "vgen":
        raise CheckpointError(
            f"The layout vgen is for ModelScope UNets and this is {what}: take original or diffusers."
        )


def diffusers_config(config: NetworkConfig, sample_size: int = SAMPLE_SIZE) -> dict[str, Any]:
    """config.json of diffusers' UNet3DConditionModel, or UNet2DConditionModel for an image UNet.

    ValueError where diffusers cannot express the architecture.
    """
    kind = "3D" if isinstance(config, UNetConfig) else "2D"
    if isinstance(config, UNetConfig) and config.first_heads != 8:
        raise CheckpointError(
            f"diffusers runs the first temporal transformer with 8 heads and this UNet has {config.first_heads}: "
            "give the target a suffix to write the tensors alone."
        )
    down = [f"CrossAttnDownBlock{kind}" if attends else f"DownBlock{kind}" for attends in config.attention_levels]
    up = [f"CrossAttnUpBlock{kind}" if attends else f"UpBlock{kind}" for attends in reversed(config.attention_levels)]
    return {
        "_class_name": f"UNet{kind}ConditionModel",
        "sample_size": sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": config.res_blocks,
        "cross_attention_dim": config.context_dim,
        # What diffusers calls the width of a head in 2-D is their number.
        "attention_head_dim": config.heads if isinstance(config, ImageUNetConfig) else config.head_width,
        "norm_num_groups": config.norm_groups,
    }


def motion_config(motion: MotionFile) -> dict[str, Any]:
    """config.json of diffusers' MotionAdapter."""
    layers = {name.split(".")[3] for name in motion.state if name.startswith("down_blocks.0.")}
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": list(motion.channels),
        "motion_layers_per_block": len(layers),
        "motion_max_seq_length": motion.frames,
        "use_motion_mid_block": motion.middle,
    }
