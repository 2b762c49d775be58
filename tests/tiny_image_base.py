"""An image base of random weights in the true layouts: a Stable Diffusion 1.5 checkpoint, a motion module, LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tiny_base import CLIP, randomised
from torch import Tensor

from dreamvideo.files.encoders import ldm_name
from dreamvideo.files.image_encoders import image_shapes
from dreamvideo.files.tensors import write_safetensors
from dreamvideo.files.text_encoders import text_shapes
from dreamvideo.models.animatediff import ImageUNet, frame_positions
from dreamvideo.models.image_config import MOTION, ImageUNetConfig

WIDTH = 24  # of the text states
IMAGE = ImageUNetConfig(
    dim=32, dim_mult=(1, 2, 2), res_blocks=1, attention_levels=(True, True, False), heads=8, context_dim=WIDTH
)
SIDE = 32  # pixels that the UNet's size must divide by: 8 of the autoencoder times its own stride
V1 = replace(IMAGE, motion_frames=24, norm_across_frames=True)
V2 = replace(IMAGE, motion_frames=32, motion_middle=True)
V3 = replace(IMAGE, motion_frames=32)
LCM = replace(IMAGE, motion_frames=64)
VERSIONS = {"v1": V1, "v2": V2, "v3": V3, "AnimateLCM": LCM}
TEXT = {"vocabulary": 49408, "width": WIDTH, "length": 77, "layers": 2, "hidden": 48, "heads": 1}
VISION = {
    "width": 32, "layers": 2, "heads": 1, "hidden": 48, "activation": "quick_gelu",
    "patch": 8, "size": 32, "projected": 20,
}  # fmt: skip
VAE = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
}
UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


def network(config: ImageUNetConfig = V3, seed: int = 0) -> ImageUNet:
    net = randomised(ImageUNet(config), seed).requires_grad_(False)
    assert isinstance(net, ImageUNet)
    return net


def image_state(net: ImageUNet) -> dict[str, Tensor]:
    return {name: value for name, value in net.state_dict().items() if not name.startswith(f"{MOTION}.")}


def motion_state(net: ImageUNet, positions: bool = True) -> dict[str, Tensor]:
    """The motion module as AnimateDiff's files have it, with its positions."""
    mark = f"{MOTION}."
    state = {name.removeprefix(mark): value for name, value in net.state_dict().items() if name.startswith(mark)}
    frames = net.config.motion_frames
    if positions and frames is not None:
        for name in [name for name in state if name.endswith(".to_q.weight")]:
            place = f"{name.removesuffix('.to_q.weight')}.pos_encoder.pe"
            state[place] = frame_positions(frames, state[name].shape[0], torch.zeros(1))[None]
    return state


def text_state(seed: int = 0) -> dict[str, Tensor]:
    return random_state(text_shapes(TEXT), seed)


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        scale = float(len(shape) == 1 and "norm" in name and name.endswith("weight"))
        state[name] = noise * shape[-1] ** -0.5 if len(shape) > 1 else scale + 0.1 * noise
    return state


def vision_state(seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """An image encoder in transformers' names."""
    return {f"{prefix}{name}": value for name, value in random_state(image_shapes(VISION), seed).items()}


def vae_state(seed: int = 0) -> dict[str, Tensor]:
    """An autoencoder in diffusers' names."""
    from diffusers import AutoencoderKL

    return dict(randomised(AutoencoderKL(**VAE), seed).state_dict())


def as_ldm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the names and shapes of Stable Diffusion's checkpoints: attention by convolutions of one position."""
    last = len(VAE["block_out_channels"]) - 1
    flat = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
    return {
        ldm_name(name, last): value[..., None, None] if name.endswith(flat) else value for name, value in state.items()
    }


def checkpoint(net: ImageUNet, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a whole Stable Diffusion checkpoint."""
    return {
        **{f"{UNET_PREFIX}{name}": value for name, value in image_state(net).items()},
        **{f"{VAE_PREFIX}{name}": value for name, value in as_ldm(vae_state(seed)).items()},
        **{f"{TEXT_PREFIX}{name}": value for name, value in text_state(seed).items()},
        f"{TEXT_PREFIX}text_model.embeddings.position_ids": torch.arange(77)[None],
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "model_ema.decay": torch.tensor(0.9999),
    }


def write_tiny_image_base(
    folder: Path, config: ImageUNetConfig = V3, seed: int = 0, *, motion: bool = True, images: bool = True
) -> Path:
    """A checkpoint, a motion module beside it, and an image encoder in open_clip's names; `folder` is returned."""
    from open_clip.model import CLIP as OpenClip

    net = network(config, seed)
    write_safetensors(folder / "dreamy.safetensors", checkpoint(net, seed), {})
    if motion:
        write_safetensors(folder / "v3_sd15_mm.safetensors", motion_state(net), {})
    if images:
        import json

        write_safetensors(
            folder / "clip.safetensors",
            randomised(OpenClip(**CLIP), seed).state_dict(),
            {"open_clip_config": json.dumps(CLIP)},
        )
    return folder


def motion_lora(config: ImageUNetConfig = V2, rank: int = 2, seed: int = 5) -> dict[str, Tensor]:
    """A motion LoRA in the names of AnimateDiff's."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in motion_state(network(config), positions=False).items():
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            if name.endswith(f".{part}.weight"):
                stem = f"{name.removesuffix(f'.{part}.weight')}.processor.{part.removesuffix('.0')}_lora"
                state[f"{stem}.down.weight"] = torch.randn(rank, value.shape[1], generator=generator)
                state[f"{stem}.up.weight"] = torch.randn(value.shape[0], rank, generator=generator)
    return state
