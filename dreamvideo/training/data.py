"""Photographs and clips as the training loop sees them: cached tensors. What is frozen is encoded once.

Latents are kept as mean and standard deviation, so that every step draws a fresh posterior sample; clips are kept with
all their frames, so that every step may start elsewhere. Everything lies on the CPU until a step needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import length_hint

import torch
from einops import rearrange
from torch import Tensor

from ..encoders.protocols import Encoders, TextEncoder
from ..media.masks import mask_to_latent

EMPTY_PROMPT = ""  # what a dropped caption becomes, and the unconditional half of sampling
IMAGES_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class TrainingItem:
    """One photograph (N = 1) or one clip of N frames.

    mean, std [4, N, h, w] of the scaled latents; mask [1, N, h, w], 1 on the subject, or None; features [N, D], the
    image feature of each frame, or None.
    """

    mean: Tensor
    std: Tensor
    caption: str
    mask: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a method trains on: items, and `frames`, how many of an item's frames make one sample.

    states: caption -> text state [77, D], the empty prompt among them; empty where the text encoder runs in the loop.
    digest: tells these data from others when a run is resumed.
    """

    items: tuple[TrainingItem, ...]
    frames: int = 1
    states: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("There is nothing to train on: give at least one photograph or clip.")
        for index, item in enumerate(self.items, start=1):
            _check(item, index, self.items[0], self.frames)
        if not self.digest:
            object.__setattr__(self, "digest", digest(_contents(self)))

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(item.caption for item in self.items)

    @property
    def features(self) -> Tensor | None:
        """The first frame's image feature of each item, [items, D], for sampling to find a guidance image in."""
        found = [item.features[0] for item in self.items if item.features is not None]
        return torch.stack(found) if found else None


def encode_photos(
    photos: Sequence[Tensor],
    captions: str | Sequence[str],
    encoders: Encoders,
    masks: Sequence[Tensor | None] | None = None,
) -> TrainingData:
    """Photographs, each [3, H, W] in 0..1 and all of one size, with one caption for all or one each.

    masks: one a photograph, [H, W] or [1, H, W] of the photograph's size, above 0.5 on the subject; None where there
    is none. Raises ValueError for sizes that differ and for a mask that is black.
    """
    clips = [photo[None] for photo in photos]  # [1, 3, H, W]
    return _encode(clips, captions, encoders, masks, frames=1)


def encode_clips(
    clips: Iterable[Tensor], captions: str | Sequence[str], encoders: Encoders, frames: int = 32
) -> TrainingData:
    """Clips, each [N, 3, H, W] in 0..1 at the frame rate to be learned, with one caption for all or one each.

    A clip is asked for when the one before it is encoded and let go, so that a generator holds one in memory.
    `frames` make one sample; of a longer clip every step takes another stretch. Raises ValueError for a shorter one.
    """
    return _encode(clips, captions, encoders, None, frames)


def with_text(data: TrainingData, text: TextEncoder, tokens: Mapping[str, Tensor] | None = None) -> TrainingData:
    """The data with the text states of their captions and of the empty prompt, under frozen learned `tokens`."""
    different = list(dict.fromkeys([EMPTY_PROMPT, *data.captions]))
    with torch.no_grad():
        states = text.encode(different, tokens).float().cpu()  # [captions, 77, D]
    if not torch.isfinite(states).all():
        raise ValueError("The text encoder gives NaN or infinity: its weights are broken or its precision too low.")
    named = [part for name, vectors in sorted((tokens or {}).items()) for part in (name, vectors)]
    return replace(data, states=dict(zip(different, states, strict=True)), digest=digest([data.digest, *named]))


def digest(parts: Iterable[str | Tensor]) -> str:
    """A fingerprint of texts and tensors: equal for equal bytes, on any machine."""
    found = _new_digest()
    for part in parts:
        _digest_part(found, part)
    return found.hexdigest()


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _digest_part(found: hashlib.blake2b, part: str | Tensor) -> None:
    if isinstance(part, Tensor):
        part = part.detach().cpu().contiguous()
        found.update(f"{part.dtype}{tuple(part.shape)}".encode())
        found.update(part.reshape(-1).view(torch.uint8).numpy().data)
    else:
        found.update(f"text {len(part)} {part}".encode())


def _check(item: TrainingItem, index: int, first: TrainingItem, least: int) -> None:
    frames = item.mean.shape[1]
    if frames < least:
        raise ValueError(
            f"Item {index} has {frames} frames and {least} make a sample: "
            f"ask for {frames} frames or fewer, or give a longer clip."
        )
    if item.mean.shape[2:] != first.mean.shape[2:]:
        sizes = [" x ".join(str(8 * n) for n in other.mean.shape[2:]) for other in (first, item)]
        raise ValueError(f"All items must be of one size: the first has {sizes[0]} pixels, number {index} {sizes[1]}.")
    for name in ("mean", "std", "features"):
        tensor = getattr(item, name)
        if tensor is not None and not torch.isfinite(tensor).all():
            raise ValueError(
                f"The encoded {name} of item {index} holds NaN or infinity: "
                "the encoder's weights are broken or its precision is too low."
            )


def _encode(
    clips: Iterable[Tensor],
    captions: str | Sequence[str],
    encoders: Encoders,
    masks: Sequence[Tensor | None] | None,
    frames: int,
) -> TrainingData:
    expected = length_hint(clips, 0 if isinstance(captions, str) else len(captions))
    _check_counts(expected, captions, masks)
    items: list[TrainingItem] = []
    found = _new_digest()
    _digest_part(found, str(frames))
    for clip in clips:  # not zipped: that would keep a clip alive while the next is read
        index = len(items)
        _check_counts(max(expected, index + 1), captions, masks)
        caption = captions if isinstance(captions, str) else captions[index]
        mask = None if masks is None else masks[index]
        item = _encoded(clip, caption, mask, encoders, index + 1)
        _check(item, index + 1, items[0] if items else item, frames)
        items.append(item)
        _digest_pixels(found, clip, caption, mask)
        del clip
    _check_counts(len(items), captions, masks)
    return TrainingData(tuple(items), frames, digest=found.hexdigest())


def _check_counts(count: int, captions: str | Sequence[str], masks: Sequence[Tensor | None] | None) -> None:
    for name, entries in (("captions", captions), ("masks", masks)):
        if entries is not None and not isinstance(entries, str) and len(entries) != count:
            raise ValueError(f"Got {len(entries)} {name} for {count} photographs or clips; give one each.")


@torch.no_grad()
def _encoded(clip: Tensor, caption: str, mask: Tensor | None, encoders: Encoders, number: int) -> TrainingItem:
    moments = encoders.vae.encode(clip)  # [N, 4, h, w]
    mean, std = (rearrange(part.float().cpu(), "n c h w -> c n h w") for part in (moments.mean, moments.std))
    features = torch.cat([encoders.image.encode(part).float().cpu() for part in clip.split(IMAGES_AT_ONCE)])
    latent_mask = None if mask is None else _latent_mask(mask, clip, mean, number)
    return TrainingItem(mean, std, caption, latent_mask, features)


def _latent_mask(mask: Tensor, photo: Tensor, mean: Tensor, index: int) -> Tensor:
    if mask.shape[-2:] != photo.shape[-2:]:
        sizes = [f"{image.shape[-1]} x {image.shape[-2]}" for image in (mask, photo)]
        raise ValueError(
            f"Mask {index} has {sizes[0]} pixels and its photograph {sizes[1]}; crop and scale them alike."
        )
    return mask_to_latent(mask.reshape(1, 1, *mask.shape[-2:]).cpu(), *mean.shape[-2:])  # [1, 1, h, w]


def _digest_pixels(found: hashlib.blake2b, clip: Tensor, caption: str, mask: Tensor | None) -> None:
    # Of the pixels rather than of the latents: an accelerator does not encode the same picture to the same bits twice.
    _digest_part(found, caption)
    _digest_part(found, torch.cat([(part * 255).round().to(torch.uint8) for part in clip.split(IMAGES_AT_ONCE)]))
    _digest_part(found, "no mask" if mask is None else mask > 0.5)


def _contents(data: TrainingData) -> Iterable:
    yield str(data.frames)
    for item in data.items:
        yield item.caption
        yield from (part for part in (item.mean, item.std, item.mask, item.features) if part is not None)
    for caption, state in data.states.items():
        yield caption
        yield state
