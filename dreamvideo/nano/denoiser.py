"""Trains the embedded base's UNet, and the text states that it reads, on pictures and then videos of the toy world.

As ModelScope's began as an image model: its spatial half learns from single frames first, which cost an eighth of a
video and differ in all that looks depend on; then the temporal half joins it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..models.blocks import TemporalConv, TemporalTransformer
from ..models.config import UNetConfig
from ..models.diffusion import offset_noise, schedule_for
from ..models.network import VideoUNet
from ..models.unet import UNet
from ..safety.paths import atomic_path
from . import wild, world
from .muon import Muon
from .progress import Loop, rank
from .vision_language import caption_of

CONFIG = UNetConfig(
    dim=64,
    dim_mult=(1, 2),
    res_blocks=1,
    attention_levels=(True, True),
    head_dim=64,
    first_heads=1,
    context_dim=64,
    dropout=0.0,
)
# Of the UNet that lies in `weights` until one of this recipe does.
SHIPPED = replace(CONFIG, dim=56, head_dim=14, first_heads=8, norm_groups=8)
PIXELS = 128  # a side of what it learns from; 64 are too few for the autoencoder to keep a pattern
VIDEOS = 8  # a step and process
PICTURES = 64  # instead, where it learns from pictures
PICTURED = 0.4  # part of the training with pictures alone; behind it every fourth step has them
BANK, PART = 6000, 500  # videos encoded once, and how many of them a file holds
PATTERNED = 3.0  # how much likelier a step is to draw a patterned subject's video than a plain one's: they are harder
PLACES_IN_CLIP = {"blocks": "transformer.resblocks", "norm": "ln_final"}  # of the text's parts that train along
SETTLING = 0.25  # part of the training in which the rates go down, and timesteps are drawn evenly
WARM_UP = 100  # steps
SNR_CAP = 5.0  # weight of nearly clean latents, as in min-SNR weighting (arXiv 2303.09556, eq. 6 for velocity)


@dataclass(frozen=True)
class Bank:
    """Training scenes 0..N-1 and their latents [N, F, 4, h, w] in half precision, to draw from."""

    latents: Tensor
    scenes: list[world.Scene]

    def draw(self, count: int, generator: torch.Generator, pictures: bool) -> tuple[Tensor, list[str]]:
        """Latents [count, 4, F, h, w], of one frame each where `pictures`, and their captions, one in ten left out."""
        weights = torch.tensor([1.0 if scene.subject.pattern == "plain" else PATTERNED for scene in self.scenes])
        chosen = weights.multinomial(count, replacement=True, generator=generator)
        clean = self.latents[chosen].float().transpose(1, 2)  # [count, 4, F, h, w]
        if pictures:
            frames = torch.randint(world.FRAMES, (count, 1, 1, 1, 1), generator=generator)
            clean = clean.take_along_dim(frames, dim=2)  # [count, 4, 1, h, w]
        captions = [caption_of(self.scenes[index], generator, moving=not pictures) for index in chosen.tolist()]
        dropped = torch.rand(count, generator=generator) < 0.1
        return clean, ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]


def bank(folder: Path, autoencoder) -> Bank:
    """BANK training scenes, encoded once and kept in `folder`. Processes of a group share the work."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first:06}.pt" for first in range(0, BANK, PART)]
    count = dist.get_world_size() if dist.is_initialized() else 1
    for path in paths[rank() :: count]:
        if not path.exists():
            latents = torch.cat([_encoded(autoencoder, int(path.stem) + index) for index in range(PART)])
            with atomic_path(path) as temporary:
                torch.save(latents, temporary)
    if dist.is_initialized():
        dist.barrier()
    latents = torch.cat([torch.load(path, weights_only=True) for path in paths])
    return Bank(latents, [_scene(index) for index in range(len(latents))])


def _encoded(autoencoder, index: int) -> Tensor:
    frames = world.render(_scene(index), size=PIXELS).frames
    with torch.autocast("cpu", torch.bfloat16):
        return autoencoder.encode(frames).mean[None].half().cpu()  # [1, F, 4, h, w]


def _scene(index: int) -> world.Scene:
    return wild.scene(torch.Generator().manual_seed(index))


def trained_parts(unet: UNet, clip: Any) -> nn.ModuleDict:
    """What trains together: the UNet, and of an open_clip CLIP what turns words into the states that it reads.

    Pictures cannot teach a text encoder that left is not right: its states of such words hardly differ.
    """
    return nn.ModuleDict({"unet": unet, "blocks": clip.transformer.resblocks[:-1], "norm": clip.ln_final})


def optimizer_of(model: nn.Module, rate: float = 1e-2, adam_rate: float = 1e-3) -> Muon:
    """Muon for what lies between a UNet's convolutions, Adam for its ends, its norms and whatever else there is."""
    matrices, others = [], []
    for unet in [module for module in model.modules() if isinstance(module, VideoUNet)]:
        for name, weight in unet.named_parameters():
            inside = weight.ndim > 1 and not name.startswith(("input_blocks.0.0.", "out.", "time_embed."))
            (matrices if inside else others).append(weight)
    known = {id(weight) for weight in (*matrices, *others)}
    others += [weight for weight in model.parameters() if id(weight) not in known]
    trained = ([weight for weight in part if weight.requires_grad] for part in (matrices, others))
    return Muon(*trained, rate=rate, adam_rate=adam_rate)


def train(folder: Path, encoders, steps: int, device: torch.device | str = "cpu", share: int = 1) -> None:
    """Train to `folder`/unet.pt, resuming what is there. share: of how many processes this one does the work."""
    torch.manual_seed(0)
    device = torch.device(device)
    unet = UNet(CONFIG).to(device)
    model = trained_parts(unet, encoders.text.clip).requires_grad_(True)
    drawn = bank(folder / "bank", encoders.vae)
    optimizer = optimizer_of(model)
    loop = Loop(folder / "unet.pt", model, optimizer, steps, decay=0.997)
    for step in loop:
        optimizer.at(rate_at(step, steps))
        still = step < PICTURED * steps
        pictures = still or step % 4 == 3
        with spatial_half(unet, still):
            loss = step_loss(
                unet, encoders.text, drawn, step, steps, share * (PICTURES if pictures else VIDEOS), pictures
            )
            loop.update(loss)


def step_loss(unet: VideoUNet, text: Any, drawn: Bank, step: int, steps: int, count: int, pictures: bool) -> Tensor:
    """The loss of a step, whose random numbers are its own and the process's."""
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(1000 * step + rank())
    clean, prompts = drawn.draw(count, generator, pictures)
    noisy = step % 2 == 0 and step < (1 - SETTLING) * steps
    chosen = timesteps(count, generator, noisy)
    with torch.autocast(device.type, torch.bfloat16):
        return _loss(unet, clean.to(device), chosen.to(device), text.encode(prompts), generator)


def rate_at(step: int, steps: int) -> float:
    """Part of the full rates: up at the start, and evenly down to almost nothing at the end."""
    return min(1.0, (step + 1) / WARM_UP, (1 - step / steps) / SETTLING + 0.01)


def _loss(unet: VideoUNet, clean: Tensor, drawn: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
    """The noise's squared error with the velocity's weights, of latents [B, 4, F, h, w] at timesteps [B].

    These weights let the noisiest latents count, where shape and motion are decided.
    """
    schedule = schedule_for(unet.config)
    noise = offset_noise(clean.shape, generator).to(clean)
    prediction = unet(schedule.add_noise(clean, noise, drawn), drawn, context.to(clean.device))
    error = (prediction.float() - noise).square().mean((1, 2, 3, 4))
    kept = schedule.alphas_cumprod.to(clean.device)[drawn]
    snr = kept / (1 - kept)
    return (error * ((snr.clamp(max=SNR_CAP) + 1) / snr).float()).mean()


@contextmanager
def spatial_half(unet: UNet, alone: bool = True) -> Iterator[None]:
    """The network without its temporal layers, whose branches are at zero until they are trained; for `alone` only."""
    temporal = [layer for layer in unet.modules() if isinstance(layer, TemporalConv | TemporalTransformer)]
    for layer in temporal if alone else ():
        layer.forward = lambda x, call: x
    try:
        yield
    finally:
        for layer in temporal if alone else ():
            del layer.forward


def timesteps(count: int, generator: torch.Generator, noisy: bool = True) -> Tensor:
    """Timesteps [count], where `noisy` the likelier the noisier: motion and shape are decided under most noise.

    Otherwise evenly, for patterns, which are decided later. One from each of `count` equally likely ranges, so that the
    loss of a step depends less on what was drawn.
    """
    place = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return (1000 * (place.sqrt() if noisy else place)).long().clamp(max=999)
