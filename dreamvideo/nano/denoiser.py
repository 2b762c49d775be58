"""Trains the embedded base's UNet, and the text states that it reads, on pictures and then videos of the toy world.

As ModelScope's began as an image model: its spatial half learns from single frames first, which cost an eighth of a
video and differ in all that looks depend on; then the temporal half joins it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.blocks import TemporalConv, TemporalTransformer
from ..models.config import UNetConfig
from ..models.diffusion import offset_noise, schedule_for
from ..models.network import VideoUNet
from ..models.unet import UNet
from .latents import Bank, bank
from .muon import Muon
from .progress import Loop, rank

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
VIDEOS = 8  # a step and process
PICTURES = 64  # instead, where it learns from pictures
PLACES_IN_CLIP = {"blocks": "transformer.resblocks", "norm": "ln_final"}  # of the text's parts that train along
SETTLING = 0.25  # part of the training in which the rates go down, and timesteps are drawn evenly
WARM_UP = 100  # steps
SNR_CAP = 5.0  # weight of nearly clean latents, as in min-SNR weighting (arXiv 2303.09556, eq. 6 for velocity)


class Kind(Enum):
    """What a step learns from, with timesteps of all noise unless it says otherwise."""

    PICTURES = "single frames"
    VIDEOS = "any videos"
    LATEST = "any videos under the most noise"
    WAYS = "one subject on all ways, under the most noise"


@dataclass(frozen=True)
class Lesson:
    """So many steps that take turns among some kinds.

    small: at half the size, for less than half the cost. alone: the spatial half without the temporal one. rate: part
    of the full rates. families: how many of the bank's are drawn from where a step has one subject on all ways.
    """

    steps: int
    kinds: tuple[Kind, ...]
    small: bool = False
    alone: bool = False
    rate: float = 1.0
    families: int = 10**6


# At 16 x 16 cells the noisiest video that the schedule makes still shows its way, so that a caption's word for it adds
# next to nothing, and from videos alone it is never heeded. Of one subject on all ways the word is all that differs.
# It is learned soonest of one toy, then of some, at half the size, and goes on to the whole size from there.
LESSONS = (
    Lesson(800, (Kind.PICTURES,), small=True, alone=True),
    Lesson(2100, (Kind.PICTURES,), alone=True),
    Lesson(200, (Kind.WAYS,), small=True, rate=0.5, families=1),
    Lesson(300, (Kind.WAYS,), small=True, rate=0.5, families=24),
    Lesson(700, (Kind.WAYS, Kind.WAYS, Kind.LATEST, Kind.PICTURES), small=True, rate=0.5),
    Lesson(500, (Kind.WAYS, Kind.VIDEOS, Kind.LATEST, Kind.PICTURES), small=True, rate=0.5),
    Lesson(2400, (Kind.WAYS, Kind.VIDEOS, Kind.LATEST, Kind.PICTURES), rate=0.5),
)
MOST_NOISE = 900  # the first of the timesteps under the most noise


def lesson_at(step: int, lessons: Sequence[Lesson]) -> tuple[Lesson, Kind]:
    """The lesson that a step is in, the last one behind them all, and the step's kind."""
    for lesson in lessons:
        if step < lesson.steps:
            break
        step -= lesson.steps
    return lesson, lesson.kinds[step % len(lesson.kinds)]


def steps_of(lessons: Sequence[Lesson]) -> int:
    """In all."""
    return sum(lesson.steps for lesson in lessons)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention: of so few tokens, in half precision and with gradients, faster on a CPU than PyTorch's own."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


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


def train(
    folder: Path,
    encoders: Any,
    lessons: Sequence[Lesson] = LESSONS,
    device: torch.device | str = "cpu",
    share: int = 1,
) -> None:
    """Train to `folder`/unet.pt, resuming what is there. share: of how many processes this one does the work."""
    torch.manual_seed(0)
    device = torch.device(device)
    unet = UNet(CONFIG, attention=attend).to(device)
    model = trained_parts(unet, encoders.text.clip).requires_grad_(True)
    drawn = bank(folder / "bank", encoders.vae)
    optimizer = optimizer_of(model)
    loop = Loop(folder / "unet.pt", model, optimizer, steps_of(lessons), decay=0.997)
    for step in loop:
        optimizer.at(rate_at(step, lessons))
        with spatial_half(unet, lesson_at(step, lessons)[0].alone):
            loop.update(step_loss(unet, encoders.text, drawn, step, lessons, share))


def step_loss(unet: VideoUNet, text: Any, drawn: Bank, step: int, lessons: Sequence[Lesson], share: int) -> Tensor:
    """The loss of a step, whose random numbers are its own and the process's."""
    lesson, kind = lesson_at(step, lessons)
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(1000 * step + rank())
    if kind is Kind.PICTURES:
        clean, prompts = drawn.pictures(share * PICTURES, lesson.small, generator)
    elif kind is Kind.WAYS:
        clean, prompts = drawn.ways(lesson.families, lesson.small, generator)
    else:
        clean, prompts = drawn.videos(share * VIDEOS, lesson.small, generator)
    if kind in (Kind.WAYS, Kind.LATEST):
        chosen = torch.randint(MOST_NOISE, 1000, (len(clean),), generator=generator)
    else:
        noisy = step % 3 != 0 and step < (1 - SETTLING) * steps_of(lessons)
        chosen = timesteps(len(clean), generator, noisy)
    with torch.autocast(device.type, torch.bfloat16):
        return _loss(unet, clean.to(device), chosen.to(device), text.encode(prompts), generator)


def rate_at(step: int, lessons: Sequence[Lesson]) -> float:
    """Part of the full rates: up at the start, the lesson's own then, and evenly down to almost nothing at the end."""
    left = 1 - step / steps_of(lessons)
    return lesson_at(step, lessons)[0].rate * min(1.0, (step + 1) / WARM_UP, left / SETTLING + 0.01)


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
