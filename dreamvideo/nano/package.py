"""Puts what was trained into the embedded base's files, and measures what they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..encoders.protocols import Autoencoder
from ..files.tensors import write_safetensors
from . import autoencoder, denoiser, rules, vision_language, world

FOLDER = Path(__file__).parent / "weights"


def average(folder: Path, part: str) -> dict[str, Tensor]:
    """The averaged weights of a part in training, e.g. "unet" (with its text blocks): the name of its file."""
    return torch.load(folder / f"{part}.pt", map_location="cpu", weights_only=True)["average"]


@torch.no_grad()
def write_autoencoder(folder: Path, target: Path = FOLDER) -> None:
    """The trained autoencoder, its latents brought to unit variance, as vae.safetensors."""
    model = autoencoder.build(autoencoder.EPSILON).eval()
    sharpened = (folder / "decoder.pt").is_file()
    model.load_state_dict(average(folder, "decoder" if sharpened else "autoencoder"))
    autoencoder.finish(model)
    scenes = [world.training_scene(torch.Generator().manual_seed(seed)) for seed in range(128)]
    autoencoder.normalise(model, torch.cat([world.render(scene).frames[::4] for scene in scenes]))
    _write(target / "vae.safetensors", model.state_dict(), "vae_config", autoencoder.CONFIG)


def write_clip(folder: Path, target: Path = FOLDER, part: str = "clip") -> None:
    """The trained encoders as clip.safetensors; the 49,408 token vectors, most of the file, in eight bits."""
    state = {key: value.half() for key, value in average(folder, part).items()}
    state["token_embedding.weight"] = state["token_embedding.weight"].to(torch.float8_e4m3fn)
    _write(target / "clip.safetensors", state, "open_clip_config", vision_language.CONFIG)


def joined_clip(folder: Path) -> dict[str, Tensor]:
    """The CLIP's weights with the text blocks and the norm that trained with the UNet in their places."""
    trained = average(folder, "unet")
    state = average(folder, "clip")
    for name, value in trained.items():
        part, _, rest = name.partition(".")
        if part in denoiser.PLACES_IN_CLIP:
            state[f"{denoiser.PLACES_IN_CLIP[part]}.{rest}"] = value
    return state


def write_unet(folder: Path, target: Path = FOLDER) -> None:
    """The trained UNet as unet.safetensors."""
    state = {
        name.removeprefix("unet."): value for name, value in average(folder, "unet").items() if name.startswith("unet.")
    }
    _write(target / "unet.safetensors", state, "unet_config", denoiser.CONFIG.to_dict())


def _write(path: Path, state: dict[str, Tensor], key: str, config: dict) -> None:
    halves = {name: value.half() if value.dtype == torch.float32 else value for name, value in state.items()}
    write_safetensors(path, {name: value.contiguous() for name, value in halves.items()}, {key: json.dumps(config)})


def measure_autoencoder(vae: Autoencoder, count: int = 100, size: int = world.SIZE) -> dict[str, float]:
    """The rules' agreement with reconstructions of held-out scenes at `size` pixels a side."""
    scenes = world.held_out_scenes(count)
    decoded = [vae.decode(vae.encode(world.render(scene, size=size).frames).mean) for scene in scenes]
    return rules.accuracy(torch.stack(decoded), scenes)


def measure_base(
    sample: Callable[[list[str], int], Tensor], count: int = 100, batch: int = 10, seed: int = 0
) -> tuple[dict[str, float], Tensor]:
    """The rules' agreement with videos of held-out captions, and the videos [count, F, 3, 64, 64].

    `sample` makes videos [B, F, 3, 64, 64] of B captions from a seed.
    """
    scenes = world.held_out_scenes(count)
    videos = []
    for first in range(0, count, batch):
        videos.append(sample([scene.caption for scene in scenes[first : first + batch]], seed + first))
    made = torch.cat(videos)
    return rules.accuracy(made, scenes), made
