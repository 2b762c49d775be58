"""Trains the embedded base's UNet, and the text states that it reads, on videos and pictures of the toy world."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.config import UNetConfig
from ..models.diffusion import Schedule, offset_noise
from ..models.unet import UNet
from ..safety.paths import atomic_path
from . import world
from .progress import Loop, rank
from .vision_language import caption_of

CONFIG = UNetConfig(
    dim=56,
    dim_mult=(1, 2),
    res_blocks=1,
    attention_levels=(True, True),
    head_dim=14,
    first_heads=8,
    context_dim=64,
    dropout=0.0,
    norm_groups=8,
)
VIDEOS = 8  # a step and process
PICTURES = 24  # every eighth step
BANK = 12000  # videos encoded once
PATTERNED = 3.0  # how much likelier a step is to draw a patterned subject's video than a plain one's: they are harder
PLACES_IN_CLIP = {"blocks": "transformer.resblocks", "norm": "ln_final"}  # of the text's parts that train along
NOISY = 0.85  # part of the training in which timesteps lean to the noisy end
SNR_CAP = 5.0  # weight of nearly clean latents, as in min-SNR weighting (arXiv 2303.09556, eq. 6 for velocity)


def bank(folder: Path, autoencoder, count: int = BANK) -> dict[str, Tensor]:
    """Latents [count, 8, 4, 8, 8] of training scenes 0..count-1, encoded once and kept in `folder`."""
    path = folder / "bank.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    means = []
    for first in range(0, count, 16):
        frames = torch.cat([world.render(_scene(index)).frames for index in range(first, min(first + 16, count))])
        means.append(autoencoder.encode(frames).mean.half().cpu())
    latents = {"latents": torch.cat(means).unflatten(0, (count, world.FRAMES))}
    with atomic_path(path) as temporary:
        torch.save(latents, temporary)
    return latents


def _scene(index: int) -> world.Scene:
    return world.training_scene(torch.Generator().manual_seed(index))


def trained_parts(unet: UNet, clip: Any) -> nn.ModuleDict:
    """What trains together: the UNet, and of an open_clip CLIP what turns words into the states that it reads.

    Pictures cannot teach a text encoder that left is not right: its states of such words hardly differ.
    """
    return nn.ModuleDict({"unet": unet, "blocks": clip.transformer.resblocks[:-1], "norm": clip.ln_final})


def train(
    folder: Path,
    encoders,
    steps: int,
    learning_rate: float = 1e-3,
    device: torch.device | str = "cpu",
    share: int = 1,
) -> None:
    """Train to `folder`/unet.pt, resuming what is there. share: of how many processes this one does the work."""
    torch.manual_seed(0)
    unet = UNet(CONFIG).to(device)
    model = trained_parts(unet, encoders.text.clip).requires_grad_(True)
    latents = bank(folder, encoders.vae)["latents"]
    scenes = [_scene(index) for index in range(len(latents))]
    weights = torch.tensor([1.0 if scene.subject.pattern == "plain" else PATTERNED for scene in scenes])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    loop = Loop(folder / "unet.pt", model, optimizer, steps, decay=0.997)
    schedule = Schedule()
    for step in loop:
        generator = torch.Generator().manual_seed(1000 * step + rank())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 200) * (0.03 + 0.97 * _cosine(step / steps))
        pictures = step % 8 == 7
        count = share * (PICTURES if pictures else VIDEOS)
        chosen = weights.multinomial(count, replacement=True, generator=generator)
        clean = latents[chosen].float().transpose(1, 2)  # [B, 4, F, 8, 8]
        if pictures:
            frame = int(torch.randint(world.FRAMES, (1,), generator=generator))
            clean = clean[:, :, frame : frame + 1]
        captions = [caption_of(scenes[index], generator, moving=not pictures) for index in chosen.tolist()]
        dropped = torch.rand(count, generator=generator) < 0.1
        prompts = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
        drawn = timesteps(count, generator, noisy=step < NOISY * steps)
        noise = offset_noise(clean.shape, generator)
        context = encoders.text.encode(prompts)
        blurred = schedule.add_noise(clean, noise, drawn).to(device)
        prediction = unet(blurred, drawn.to(device), context.to(device))
        error = (prediction - noise.to(device)).square().mean((1, 2, 3, 4))
        kept = schedule.alphas_cumprod[drawn]
        snr = kept / (1 - kept)
        # The velocity's weights: they let the noisiest latents count, where shape and motion are decided.
        loop.update((error * ((snr.clamp(max=SNR_CAP) + 1) / snr).float().to(device)).mean())


def timesteps(count: int, generator: torch.Generator, noisy: bool = True) -> Tensor:
    """Timesteps [count], where `noisy` the likelier the noisier: motion and shape are decided under most noise.

    Otherwise evenly, for patterns, which are decided later. One from each of `count` equally likely ranges, so that the
    loss of a step depends less on what was drawn.
    """
    place = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return (1000 * (place.sqrt() if noisy else place)).long().clamp(max=999)


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * part))
