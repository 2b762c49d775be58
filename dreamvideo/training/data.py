"""Photographs and clips as the training loop sees them: cached tensors. What is frozen is encoded once.

Latents are kept as mean and standard deviation, so that every step draws a fresh posterior sample; clips are kept with
all their frames, so that every step may start elsewhere. Everything lies on the CPU until a step needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import length_hint
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..encoders.layered import encode
from ..encoders.protocols import Encoders, NoImages, TextEncoder, at_once, release
from ..media.masks import mask_to_latent, uncovered
from .cache import read_cached, write_cached

Report = Callable[[int, int], None]
"""Takes how many frames are encoded, and of how many: clips that are yet to be read count as long as those before."""

EMPTY_PROMPT = ""  # what a dropped caption becomes, and the unconditional half of sampling
IMAGES_AT_ONCE = 8


def silent(done: int, total: int) -> None:
    """Reports nothing."""


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

    states: caption -> text state [77, D], or [L, 77, D] under a word with a vector a layer, the empty prompt among
    them; empty where the text encoder runs in the loop. places: caption -> where its learned word stands, bool [77],
    for a loss on the attention to it.
    digest: tells these data from others when a run is resumed.
    """

    items: tuple[TrainingItem, ...]
    frames: int = 1
    states: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""
    places: Mapping[str, Tensor] = field(default_factory=dict)

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
    *,
    report: Report = silent,
    cache: Path | None = None,
) -> TrainingData:
    """Photographs, each [3, H, W] in 0..1 and all of one size, with one caption for all or one each.

    masks: one a photograph, [H, W] or [1, H, W] of the photograph's size, above 0.5 on the subject; None where there
    is none. cache: a folder to keep what is encoded in and to find what was; the data are the same without.
    Raises ValueError for sizes that differ and for a mask that is black.
    """
    _check_counts(len(photos), captions, masks)
    clips = [photo[None] for photo in photos]  # [1, 3, H, W]
    pairs = list(zip(clips, masks or [None] * len(clips), strict=True))
    return _encode(pairs, captions, _Encoding(encoders, report, cache), _latent_mask, frames=1)


def encode_clips(
    clips: Iterable[Tensor | tuple[Tensor, Tensor | None]],
    captions: str | Sequence[str],
    encoders: Encoders,
    frames: int = 32,
    *,
    report: Report = silent,
    cache: Path | None = None,
) -> TrainingData:
    """Clips, each [N, 3, H, W] in 0..1 at the frame rate to be learned, with one caption for all or one each.

    A clip may come with its mask [N, H, W], above 0.5 on what is not to be learned from: faces, a logo. A clip is asked
    for when the one before it is encoded and let go, so that a generator holds one in memory. `frames` make one sample;
    of a longer clip every step takes another stretch, but for methods that know frames by number. cache: as in
    encode_photos.
    Raises ValueError for a shorter one, and for a mask of another size or length or one that leaves nothing.
    """
    return _encode(clips, captions, _Encoding(encoders, report, cache), _latent_uncovered, frames)


def with_text(data: TrainingData, text: TextEncoder, tokens: Mapping[str, Tensor] | None = None) -> TrainingData:
    """The data with the text states of their captions and of the empty prompt, under frozen learned `tokens`."""
    different = list(dict.fromkeys([EMPTY_PROMPT, *data.captions]))
    with torch.no_grad():
        states = encode(text, different, tokens).float().cpu()  # [captions, 77, D] or [captions, L, 77, D]
    release(text)
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
    clips: Iterable[Tensor | tuple[Tensor, Tensor | None]],
    captions: str | Sequence[str],
    encoding: _Encoding,
    to_latent: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    frames: int,
) -> TrainingData:
    """Clips, or pairs of a clip and its mask. to_latent: (mask, clip, mean, number) -> what weighs [1, N, h, w]."""
    expected = length_hint(clips, 0 if isinstance(captions, str) else len(captions))
    _check_counts(expected, captions)
    items: list[TrainingItem] = []
    found = _new_digest()
    _digest_part(found, str(frames))
    for each in clips:  # not zipped: that would keep a clip alive while the next is read
        clip, mask = each if isinstance(each, tuple) else (each, None)
        index = len(items)
        _check_counts(max(expected, index + 1), captions)
        caption = captions if isinstance(captions, str) else captions[index]
        mean, std, features = encoding.moments_and_features(clip, max(expected - index - 1, 0))
        latent_mask = None if mask is None else to_latent(mask, clip, mean, index + 1)
        item = TrainingItem(mean, std, caption, latent_mask, features)
        _check(item, index + 1, items[0] if items else item, frames)
        items.append(item)
        _digest_pixels(found, clip, caption, mask)
        del clip, each
    _check_counts(len(items), captions)
    release(encoding.encoders.vae, encoding.encoders.image)  # until a preview
    return TrainingData(tuple(items), frames, digest=found.hexdigest())


def _check_counts(count: int, captions: str | Sequence[str], masks: Sequence[Tensor | None] | None = None) -> None:
    for name, entries in (("captions", captions), ("masks", masks)):
        if entries is not None and not isinstance(entries, str) and len(entries) != count:
            raise ValueError(f"Got {len(entries)} {name} for {count} photographs or clips; give one each.")


@dataclass(eq=False)
class _Encoding:
    """Encodes one clip after the other, unless the cache has it, and counts their frames."""

    encoders: Encoders
    report: Report
    cache: Path | None
    clips: int = 0
    frames: int = 0  # of the clips so far
    done: int = 0

    @torch.no_grad()
    def moments_and_features(self, clip: Tensor, later: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean and std [4, N, h, w] of the latents of a clip [N, 3, H, W], and its image features [N, D] where the base
        makes any; `later`: clips that come after it."""
        self.clips, self.frames = self.clips + 1, self.frames + len(clip)
        total = self.frames + round(later * self.frames / self.clips)
        self.report(self.done, total)
        cache = self.cache if self.encoders.fingerprint and len(clip) else None
        key = "" if cache is None else digest([self.encoders.fingerprint, clip])
        found = None if cache is None else read_cached(cache, key, len(clip))
        if found is None:
            found = self._encoded(clip, total)
            if cache is not None and all(tensor.isfinite().all() for tensor in found.values()):
                write_cached(cache, key, found)
        self.done = self.frames
        self.report(self.done, total)
        return found["mean"], found["std"], found["features"] if found["features"].numel() else None

    def _encoded(self, clip: Tensor, total: int) -> dict[str, Tensor]:
        moments, features = [], []
        for part in clip.split(at_once(*clip.shape[-2:])):
            moments.append(self.encoders.vae.encode(part))  # [n, 4, h, w]
            if not isinstance(self.encoders.image, NoImages):
                features += [self.encoders.image.encode(few).float().cpu() for few in part.split(IMAGES_AT_ONCE)]
            self.done += len(part)
            if self.done < self.frames:
                self.report(self.done, total)
        mean, std = (
            rearrange(
                torch.cat([getattr(each, name).float().cpu() for each in moments]), "n c h w -> c n h w"
            ).contiguous()
            for name in ("mean", "std")
        )
        return {"mean": mean, "std": std, "features": torch.cat(features) if features else torch.empty(len(clip), 0)}


def _latent_mask(mask: Tensor, photo: Tensor, mean: Tensor, index: int) -> Tensor:
    if mask.shape[-2:] != photo.shape[-2:]:
        sizes = [f"{image.shape[-1]} x {image.shape[-2]}" for image in (mask, photo)]
        raise ValueError(
            f"Mask {index} has {sizes[0]} pixels and its photograph {sizes[1]}; crop and scale them alike."
        )
    return mask_to_latent(mask.reshape(1, 1, *mask.shape[-2:]).cpu(), *mean.shape[-2:])  # [1, 1, h, w]


def _latent_uncovered(mask: Tensor, clip: Tensor, mean: Tensor, index: int) -> Tensor:
    if mask.shape != (len(clip), *clip.shape[-2:]):
        sizes = [f"{len(each)} frames of {each.shape[-1]} x {each.shape[-2]}" for each in (mask, clip)]
        raise ValueError(
            f"Mask {index} has {sizes[0]} pixels and its clip {sizes[1]}; crop, scale and thin them alike."
        )
    return uncovered(mask.cpu() > 0.5, mean.shape[-2], mean.shape[-1], f"of clip {index}")


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
