"""What a training step sees: samples, noise and timesteps, drawn from one generator on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.diffusion import offset_noise
from .data import EMPTY_PROMPT, TrainingData, TrainingItem
from .methods import Method
from .settings import TrainingSettings

NO_MASKS = "mask_attention pulls a word to masks, and these photographs have none: give masks, or leave it out."


@dataclass(frozen=True)
class Batch:
    """One step's draw, on the CPU, float32.

    latents, noise [B, 4, F, h, w]; timesteps [B]; states [B, 77, D] or None; dropped [B], where the empty prompt
    replaces the caption; features [B, D], zeros where dropped, or None; mask [B, 1, F, h, w] or None; anchors [B], the
    frame that the others are compared with in a debiased loss, or None. subjects, for a loss on the attention: where
    the subject is [B, 1, F, h, w], and which samples [B] have a mask and their caption; or None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: list[str]
    states: Tensor | None
    dropped: Tensor
    features: Tensor | None
    mask: Tensor | None
    anchors: Tensor | None = None
    subjects: tuple[Tensor, Tensor] | None = None


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
    weighed = settings.masked or method.data == "clips"  # whose masks are given to be used
    marked = torch.tensor([item.mask is not None for item in items])  # [B]
    states = torch.stack([data.states[item.caption] for item in items]) if data.states else None
    timesteps = method.timesteps(size, generator)
    if settings.noisier:
        timesteps = timesteps.maximum(method.timesteps(size, generator))
    shape = (size, *latents[0].shape)
    noise = offset_noise(shape, generator, settings.offset_noise)
    batch = Batch(
        latents=torch.stack(latents),  # [B, 4, F, h, w]
        noise=noise,
        timesteps=timesteps,
        captions=[item.caption for item in items],
        states=states,
        dropped=dropped,
        features=torch.stack(features) * ~blind[:, None] if method.appearance_guidance else None,
        mask=torch.stack(masks) if weighed and marked.any() else None,
        anchors=torch.randint(data.frames, (size,), generator=generator) if settings.debias else None,
        subjects=(torch.stack(masks), marked & ~dropped) if settings.mask_attention else None,
    )
    return batch, queue[size:]


def _draw_sample(
    item: TrainingItem, frames: int, method: Method, shift: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents [4, F, h, w] of a random stretch, its mask [1, F, h, w], and the feature [D] of a random frame of it.

    A method that tells frames apart takes the first stretch always: its vectors are of moments of the motion.
    """
    starts = 1 if method.tells_frames else item.mean.shape[1] - frames + 1
    start = int(torch.randint(starts, (), generator=generator))
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


def check_drawable(data: TrainingData, method: Method, settings: TrainingSettings) -> None:
    """Raise ValueError for data that lack what a method's steps draw from them."""
    if method.data == "images" and data.frames != 1:
        raise ValueError(f"The method {method.name} trains on photographs, and these data have {data.frames} frames.")
    if method.appearance_guidance and any(item.features is None for item in data.items):
        raise ValueError(f"The method {method.name} needs an image feature of every frame, and these data lack some.")
    if (settings.debias or settings.absorber) and method.data == "images":
        raise ValueError(f"The method {method.name} trains on photographs: debias and absorber are for clips.")
    _check_word(data, method, settings)
    if settings.debias and data.frames < 2:
        raise ValueError("A debiased loss compares frames, and these data have one a sample: ask for 2 frames or more.")
    if settings.p_text_drop and EMPTY_PROMPT not in data.states:
        raise ValueError("Captions can be dropped only where the empty prompt's text state is cached; see `with_text`.")
    missing = [caption for caption in data.captions if data.states and caption not in data.states]
    if missing:
        raise ValueError(f"There is no text state of the caption {missing[0]!r} in these data; see `with_text`.")


def _check_word(data: TrainingData, method: Method, settings: TrainingSettings) -> None:
    """Of what is done for a subject's word."""
    own = [name for name in ("layered_token", "mask_attention") if getattr(settings, name)]
    if own and (method.data != "images" or method.token not in ("learned", "given")):
        names = f"{' and '.join(own)} {'is' if len(own) == 1 else 'are'}"
        raise ValueError(f"The method {method.name} learns no word of a subject: {names} for one that does.")
    if settings.mask_attention and not method.mask_attention and all(item.mask is None for item in data.items):
        raise ValueError(NO_MASKS)


def notes_on(data: TrainingData, method: Method, settings: TrainingSettings) -> list[str]:
    """Sentences about what of the data a method leaves out."""
    notes, masks = [], any(item.mask is not None for item in data.items)
    if settings.mask_attention and not masks:
        notes.append("The photographs have no masks, so the attention to the subject's word is left as it is.")
    if method.masked and not (settings.masked or settings.mask_attention) and masks:
        notes.append("The masks are not used: with these settings whole photographs are learned from.")
    if method.tells_frames and any(item.mean.shape[1] > data.frames for item in data.items):
        notes.append(
            f"Only the first {data.frames} frames of each clip are learned from: the method knows frames by number."
        )
    return notes
