"""What a training step sees: samples, noise and timesteps, drawn from one generator on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.diffusion import offset_noise
from .data import TrainingData, TrainingItem
from .methods import Method
from .settings import TrainingSettings


@dataclass(frozen=True)
class Batch:
    """One step's draw, on the CPU, float32.

    latents, noise [B, 4, F, h, w]; timesteps [B]; states [B, 77, D] or None; dropped [B], where the empty prompt
    replaces the caption; features [B, D], zeros where dropped, or None; mask [B, 1, F, h, w] or None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: list[str]
    states: Tensor | None
    dropped: Tensor
    features: Tensor | None
    mask: Tensor | None


def draw_batch(
    data: TrainingData, method: Method, settings: TrainingSettings, queue: Tensor, generator: torch.Generator
) -> tuple[Batch, Tensor]:
    """Draw a step's samples. `queue` holds the items still to come in this round; the new queue is returned.

    Every round takes every item once, in a new order; a batch larger than what is left begins the next round.
    """
    size = settings.batch_size
    while len(queue) < size:
        queue = torch.cat([queue, torch.randperm(len(data.items), generator=generator)])
    items = [data.items[i] for i in queue[:size].tolist()]
    samples = [_draw_sample(item, data.frames, method, settings.shift, generator) for item in items]
    latents, masks, features = zip(*samples, strict=True)
    dropped = torch.rand(size, generator=generator) < settings.p_text_drop  # [B]
    blind = torch.rand(size, generator=generator) < settings.p_image_drop  # [B]
    masked = settings.masked and any(item.mask is not None for item in items)
    states = torch.stack([data.states[item.caption] for item in items]) if data.states else None
    timesteps = method.timesteps(size, generator)
    if settings.noisier:
        timesteps = timesteps.maximum(method.timesteps(size, generator))
    shape = (size, *latents[0].shape)
    batch = Batch(
        latents=torch.stack(latents),  # [B, 4, F, h, w]
        noise=offset_noise(shape, generator, settings.offset_noise),
        timesteps=timesteps,
        captions=[item.caption for item in items],
        states=states,
        dropped=dropped,
        features=torch.stack(features) * ~blind[:, None] if method.appearance_guidance else None,
        mask=torch.stack(masks) if masked else None,
    )
    return batch, queue[size:]


def _draw_sample(
    item: TrainingItem, frames: int, method: Method, shift: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents [4, F, h, w] of a random stretch, its mask [1, F, h, w], and the feature [D] of a random frame of it."""
    start = int(torch.randint(item.mean.shape[1] - frames + 1, (), generator=generator))
    guide = start + int(torch.randint(frames, (), generator=generator))
    stretch = slice(start, start + frames)
    mean, std = item.mean[:, stretch], item.std[:, stretch]
    mask = torch.ones_like(mean[:1]) if item.mask is None else item.mask[:, stretch]
    feature = item.features[guide] if method.appearance_guidance and item.features is not None else None
    latents = mean + std * torch.randn(mean.shape, generator=generator)
    if shift:
        down, right = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
        latents, mask = _moved(latents, down, right), _moved(mask, down, right)
    return latents, mask, feature


def _moved(picture: Tensor, down: int, right: int) -> Tensor:
    """[C, F, h, w] moved by whole cells; what comes in repeats the edge."""
    height, width = picture.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return picture[..., rows[:, None], columns]
