"""Puts what was trained into the embedded base's files, and measures what they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..base import IMAGE_FOLDER
from ..encoders.protocols import Autoencoder
from ..files.tensors import write_safetensors
from ..models.animatediff import frame_positions
from . import autoencoder, denoiser, image_base, rules, vision_language, world
from .progress import averaged

FOLDER = Path(__file__).parent / "weights"


@torch.no_grad()
def write_autoencoder(folder: Path, target: Path = FOLDER) -> None:
    """The trained autoencoder, its latents brought to unit variance, as vae.safetensors."""
    model = autoencoder.build(autoencoder.EPSILON).eval()
    sharpened = (folder / "decoder.pt").is_file()
    model.load_state_dict(averaged(folder / ("decoder.pt" if sharpened else "autoencoder.pt")))
    autoencoder.finish(model)
    scenes = [world.training_scene(torch.Generator().manual_seed(seed)) for seed in range(128)]
    autoencoder.normalise(model, torch.cat([world.render(scene).frames[::4] for scene in scenes]))
    _write(target / "vae.safetensors", model.state_dict(), "vae_config", autoencoder.CONFIG)


def write_clip(folder: Path, target: Path = FOLDER, part: str = "clip") -> None:
    """The trained encoders as clip.safetensors; the 49,408 token vectors, most of the file, in eight bits."""
    state = {key: value.half() for key, value in averaged(folder / f"{part}.pt").items()}
    state["token_embedding.weight"] = state["token_embedding.weight"].to(torch.float8_e4m3fn)
    _write(target / "clip.safetensors", state, "open_clip_config", vision_language.CONFIG)


def joined_clip(folder: Path) -> dict[str, Tensor]:
    """The CLIP's weights with the text blocks and the norm that trained with the UNet in their places."""
    trained = averaged(folder / "unet.pt")
    state = averaged(folder / "clip.pt")
    for name, value in trained.items():
        part, _, rest = name.partition(".")
        if part in denoiser.PLACES_IN_CLIP:
            state[f"{denoiser.PLACES_IN_CLIP[part]}.{rest}"] = value
    return state


def write_unet(folder: Path, target: Path = FOLDER) -> None:
    """The trained UNet as unet.safetensors."""
    state = averaged(folder / "unet.pt", "unet.")
    _write(target / "unet.safetensors", state, "unet_config", denoiser.CONFIG.to_dict())


def write_image_model(folder: Path, target: Path = FOLDER) -> None:
    """The trained image model as image/unet.safetensors, which is Stable Diffusion's in all but size."""
    state = averaged(folder / "image.pt")
    _write(target / IMAGE_FOLDER / "unet.safetensors", state, "unet_config", image_base.CONFIG.to_dict())


def write_motion_module(folder: Path, target: Path = FOLDER) -> None:
    """The trained motion module as image/motion_module.safetensors, with its positions as AnimateDiff's have them."""
    state = averaged(folder / "motion_module.pt")
    for name in [name for name in state if name.endswith(".to_q.weight")]:
        positions = frame_positions(world.FRAMES, len(state[name]), state[name])
        state[f"{name.removesuffix('.to_q.weight')}.pos_encoder.pe"] = positions[None]  # [1, F, C]
    _write(target / IMAGE_FOLDER / "motion_module.safetensors", state)


def _write(path: Path, state: dict[str, Tensor], key: str = "", config: dict | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {key: json.dumps(config)} if key else {}
    halves = {name: value.half() if value.dtype == torch.float32 else value for name, value in state.items()}
    write_safetensors(path, {name: value.contiguous() for name, value in halves.items()}, about)


def measure_autoencoder(vae: Autoencoder, count: int = 100, size: int = world.SIZE) -> dict[str, float]:
    """The rules' agreement with reconstructions of held-out scenes at `size` pixels a side."""
    scenes = world.held_out_scenes(count)
    decoded = [vae.decode(vae.encode(world.render(scene, size=size).frames).mean) for scene in scenes]
    return rules.accuracy(torch.stack(decoded), scenes)


def measure_base(
    sample: Callable[[list[str], int], Tensor], count: int = 100, batch: int = 10, seed: int = 0
) -> dict[str, float]:
    """The rules' agreement with videos of held-out captions.

    `sample` makes videos [B, F, 3, H, W] of B captions from a seed.
    """
    scenes = world.held_out_scenes(count)
    videos = []
    for first in range(0, count, batch):
        videos.append(sample([scene.caption for scene in scenes[first : first + batch]], seed + first))
    return rules.accuracy(torch.cat(videos), scenes)
