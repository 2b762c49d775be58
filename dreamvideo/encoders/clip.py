"""What turns prompts, images and pixels into what the UNet reads, behind three small protocols.

The implementations here are open_clip's CLIP (both towers) and diffusers' AutoencoderKL; another host puts its own
encoders behind the same protocols. Whatever the precision of the weights, results leave in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.resizing import area_average
from ..safety.texts import quoted
from .prompts import Piece, check_placeholder, clip_tokenizer, read_weights, split_prompt

if TYPE_CHECKING:
    from ..files.base import BaseFiles

log = logging.getLogger(__name__)

START, END, PAD = 49406, 49407, 0  # CLIP's byte-pair vocabulary; the base was trained with 0 behind the end token
LATENT_SCALE = 0.18215  # Stable Diffusion's f8 autoencoder: brings latents to about unit variance
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PIXELS_PER_CHUNK = 8 * 256 * 256  # what the autoencoder takes at once unless told


class TextEncoder(Protocol):
    """Prompts to text states."""

    @property
    def width(self) -> int: ...

    def encode(
        self, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None, *, weighted: bool = False
    ) -> Tensor:
        """Text states [B, 77, D] of B prompts; `tokens` maps placeholders to learned vectors [n, D], differentiably.

        weighted: brackets are weights, as in `prompts.read_weights`; else they are text, as captions want it.
        """
        ...

    def embed_word(self, word: str) -> Tensor:
        """Token embeddings [n, D] of a word or a phrase, one row a byte-pair token."""
        ...

    def check_placeholder(self, name: str, taken: Iterable[str] = ()) -> None:
        """Raise ValueError unless `name` can stand for a learned token beside the placeholders `taken`."""
        ...


class ImageEncoder(Protocol):
    """Images to the features that guide motion adapters."""

    @property
    def width(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D], not normalised, of images [B, 3, H, W] in 0..1 of any size."""
        ...


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of scaled latents, each [N, 4, H/8, W/8]."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw of the latents; the noise comes from the generator's own device, so a seed means one thing."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)


class Autoencoder(Protocol):
    """Pixels to latents and back."""

    def encode(self, images: Tensor, chunk: int | None = None) -> Moments:
        """Moments of the scaled latents of images [N, 3, H, W] in 0..1, `chunk` images at a time."""
        ...

    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Images [N, 3, H, W] in 0..1 of scaled latents [N, 4, H/8, W/8], `chunk` at a time."""
        ...


@dataclass(frozen=True)
class Encoders:
    """The three encoders of a base."""

    text: TextEncoder
    image: ImageEncoder
    vae: Autoencoder


# ------------------------------------------------------------------------------------------------- CLIP


class OpenClipText:
    """The text tower of an open_clip `CLIP`: all blocks but the last, then the final norm, all positions.

    This is the "penultimate" text state that ModelScope's UNet was trained on. Gradients reach the learned tokens, and
    the tower's weights where they ask for them.
    """

    def __init__(self, clip: nn.Module):
        layers = len(clip.transformer.resblocks)
        if layers < 2:
            raise ValueError(f"A text tower needs at least 2 blocks to have a penultimate one; this one has {layers}.")
        self.clip = clip
        self._warned: set[str] = set()

    @property
    def width(self) -> int:
        return self.clip.token_embedding.weight.shape[1]

    def to(self, *args: Any, **kwargs: Any) -> OpenClipText:
        """Move the CLIP this is a face of, as `nn.Module.to`."""
        self.clip.to(*args, **kwargs)
        return self

    def check_placeholder(self, name: str, taken: Iterable[str] = ()) -> None:
        """As the function of this name."""
        check_placeholder(name, taken)

    def embed_word(self, word: str) -> Tensor:
        """Token embeddings [n, D] of a word, one row a byte-pair token (2 for "plushie"); the authors start a learned
        token from the first row. ValueError if nothing is left of the word."""
        ids = clip_tokenizer().encode(word)
        if not ids:
            raise ValueError(f"The word {quoted(word)} holds nothing to start a token from; give a word such as dog.")
        return _full_precision(self.clip.token_embedding.weight.detach()[ids])

    def tokenize(self, prompt: str, counts: Mapping[str, int] | None = None) -> tuple[list[int], list[tuple[str, int]]]:
        """Token ids of one prompt, filled to the context length, and for each place its (placeholder, row) or ("", 0).

        `counts` says how many vectors each placeholder has; their places hold the padding id. ValueError where a
        placeholder stands behind the end.
        """
        pieces = [Piece(*piece) for piece in split_prompt(prompt, counts or {})]
        return self._tokenize(prompt, pieces, counts or {})[:2]

    def _tokenize(
        self, prompt: str, pieces: Sequence[Piece], counts: Mapping[str, int]
    ) -> tuple[list[int], list[tuple[str, int]], list[float]]:
        """As `tokenize`, of a prompt in pieces; and the weight of each place."""
        ids: list[int] = [START]
        slots: list[tuple[str, int]] = [("", 0)]
        weights = [1.0]
        for piece, learned, weight in pieces:
            found = [PAD] * counts[piece] if learned else clip_tokenizer().encode(piece)
            ids += found
            slots += [(piece, row) if learned else ("", 0) for row in range(len(found))]
            weights += [weight] * len(found)
        length = self.clip.context_length
        self._tell_if_cut(prompt, ids, slots, length - 1)
        ids = [*ids[: length - 1], END]
        slots = [*slots[: length - 1], ("", 0)]
        weights = [*weights[: length - 1], 1.0]
        missing = length - len(ids)
        return ids + [PAD] * missing, slots + [("", 0)] * missing, weights + [1.0] * missing

    def _tell_if_cut(self, prompt: str, ids: Sequence[int], slots: Sequence[tuple[str, int]], end: int) -> None:
        if len(ids) > end:
            # A training loop encodes the same caption at every step.
            left_out = list(zip(ids[end:], [name for name, _ in slots[end:]], strict=True))
            tell_what_is_cut(len(ids) - 1, end - 1, left_out, told=prompt in self._warned)
            self._warned.add(prompt)

    def encode(
        self, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None, *, weighted: bool = False
    ) -> Tensor:
        """Text states [B, 77, D]; `tokens` maps placeholders to vectors [n, D] (or [D]) put in before the positions.

        weighted: brackets weigh, as in ComfyUI: a state of weight w is w times as far from the empty prompt's at the
        same place. Prompts of more than 75 tokens are cut, with a warning. ValueError for vectors of another width,
        for a placeholder that would be cut, and what `prompts.read_weights` raises.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"Prompts come as a list of texts; this is {quoted(prompts)}.")
        vectors = {name: self._checked(name, rows) for name, rows in (tokens or {}).items()}
        counts = {name: len(rows) for name, rows in vectors.items()}
        read = read_weights if weighted else _read_plainly
        found = [self._tokenize(prompt, read(prompt, counts), counts) for prompt in prompts]
        weighs = any(weight != 1.0 for *_, weights in found for weight in weights)
        if weighs:
            found.append(self._tokenize("", [], {}))
        ids, slots, weights = zip(*found, strict=True)
        device = self.clip.token_embedding.weight.device
        x = self.clip.token_embedding(torch.tensor(ids, device=device))  # [B, 77, D]
        x = _put_in(x, slots, vectors)
        x = x + self.clip.positional_embedding.to(x.dtype)
        x = _full_precision(self.clip.ln_final(self._blocks(x)))
        return _weigh(x[:-1], x[-1], weights[:-1]) if weighs else x

    def _checked(self, name: str, rows: Tensor) -> Tensor:
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self.width or not len(rows):
            raise ValueError(
                f"The token {quoted(name)} has shape {list(rows.shape)} and this text encoder takes vectors of width "
                f"{self.width}: it was learned on another base."
            )
        return rows

    def _blocks(self, x: Tensor) -> Tensor:
        transformer, mask = self.clip.transformer, self.clip.attn_mask
        batch_first = getattr(transformer, "batch_first", False)  # older open_clip wants the positions first
        x = x if batch_first else x.transpose(0, 1)
        for block in transformer.resblocks[:-1]:
            x = block(x, attn_mask=mask)
        return x if batch_first else x.transpose(0, 1)


def _read_plainly(prompt: str, names: Iterable[str]) -> list[Piece]:
    return [Piece(*piece) for piece in split_prompt(prompt, names)]


def _weigh(states: Tensor, empty: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """States [B, L, D] moved from the empty prompt's [L, D], or towards them, by the weights of their places."""
    factor = torch.tensor(weights, device=states.device)[..., None]  # [B, L, 1]
    return torch.where(factor == 1.0, states, empty + factor * (states - empty))


def tell_what_is_cut(tokens: int, room: int, left_out: Sequence[tuple[int, str]], *, told: bool = False) -> None:
    """Warn, unless told already, of a prompt that is too long, with what is left out: (token id, placeholder or "").

    ValueError where that is a placeholder: the subject would not be in what comes out, and not learn in training.
    """
    size = f"A prompt has {tokens} tokens and the text encoder reads {room}"
    for _, name in left_out:
        if name:
            raise ValueError(f"{size}, which end before {quoted(name)}: put it further to the front, or write less.")
    if not told:
        text = clip_tokenizer().decode([token for token, _ in left_out]).strip()
        log.warning("%s; left out is %s.", size, quoted(text))


def _put_in(x: Tensor, slots: Sequence[Sequence[tuple[str, int]]], vectors: Mapping[str, Tensor]) -> Tensor:
    """Replace the embeddings x [B, L, D] at the placeholders' places by their vectors, differentiably."""
    places = [(b, p, name, row) for b, line in enumerate(slots) for p, (name, row) in enumerate(line) if name]
    if not places:
        return x
    batch, position, names, rows = zip(*places, strict=True)
    found = torch.stack([vectors[name][row].to(x) for name, row in zip(names, rows, strict=True)])  # [places, D]
    index = (torch.tensor(batch, device=x.device), torch.tensor(position, device=x.device))
    return x.index_put(index, found)


class OpenClipImage:
    """The image tower of an open_clip `CLIP`: the pooled, projected feature, not normalised (the authors' y_image)."""

    def __init__(self, clip: nn.Module):
        self.clip = clip

    @property
    def width(self) -> int:
        return self.clip.visual.output_dim

    @property
    def image_size(self) -> int:
        size = self.clip.visual.image_size
        return size if isinstance(size, int) else size[0]

    def to(self, *args: Any, **kwargs: Any) -> OpenClipImage:
        """Move the CLIP this is a face of, as `nn.Module.to`."""
        self.clip.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W] in 0..1 of any size."""
        weight = self.clip.visual.conv1.weight
        pixels = clip_pixels(_checked_images(images).to(weight.device, torch.float32), self.image_size)
        return _full_precision(self.clip.encode_image(pixels.to(weight.dtype)))


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """What a CLIP image tower of this size sees: images [B, 3, H, W] in 0..1 -> normalised [B, 3, size, size].

    The short side is brought to the size by area averaging and the centre square kept. A 224 tower sees, as in the
    authors' training, a 256 square brought to 224 bilinearly.
    """
    from kornia.enhance import normalize

    pixels = _centre_square(images, 256 if size == 224 else size)
    if size == 224:
        # PIL's bilinear filter widens when it shrinks; of torch's and kornia's, only this one does the same
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return normalize(pixels, torch.tensor(CLIP_MEAN).to(pixels), torch.tensor(CLIP_STD).to(pixels))


def _centre_square(images: Tensor, side: int) -> Tensor:
    """Scale images [B, 3, H, W] so that they just cover side x side, and keep the centre."""
    images = _centre_crop(images, 2 * min(images.shape[-2:]))  # or a 1 x 20,000 image would be scaled to millions
    height, width = images.shape[-2:]
    scale = min(height, width) / side
    if scale != 1:
        images = area_average(images, (int(height / scale), int(width / scale)))
    return _centre_crop(images, side)


def _centre_crop(images: Tensor, limit: int) -> Tensor:
    height, width = images.shape[-2:]
    top, left = max(height - limit, 0) // 2, max(width - limit, 0) // 2
    return images[..., top : top + limit, left : left + limit]


# -------------------------------------------------------------------------------------------------- VAE


class KLAutoencoder:
    """diffusers' `AutoencoderKL` with the latent scale applied, a few images at a time."""

    def __init__(self, vae: nn.Module):
        self.vae = vae

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along each side (8)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def to(self, *args: Any, **kwargs: Any) -> KLAutoencoder:
        """Move the autoencoder, as `nn.Module.to`."""
        self.vae.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, chunk: int | None = None) -> Moments:
        """Moments of the scaled latents of images [N, 3, H, W] in 0..1.

        `chunk` images go in at a time; by default as many as make up eight of 256 x 256 pixels. ValueError unless
        height and width divide by `factor`.
        """
        height, width = _checked_images(images).shape[-2:]
        if height % self.factor or width % self.factor:
            near = " x ".join(str(max(round(n / self.factor), 1) * self.factor) for n in (width, height))
            raise ValueError(
                f"Images of {width} x {height} pixels do not divide into latents of {self.factor} x {self.factor} "
                f"pixels; the nearest size that does is {near}."
            )
        parts = [self.vae.encode(part * 2 - 1).latent_dist for part in self._parts(images, chunk, height * width)]
        mean = torch.cat([_full_precision(part.mean) for part in parts])
        std = torch.cat([_full_precision(part.std) for part in parts])
        return Moments(mean * LATENT_SCALE, std * LATENT_SCALE)

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Images [N, 3, H, W] in 0..1 of scaled latents [N, 4, H/8, W/8]; `chunk` as in encode."""
        channels = self.vae.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels or not len(latents):
            raise ValueError(f"Latents come as [N, {channels}, h, w]; these have shape {list(latents.shape)}.")
        pixels = latents.shape[-2] * latents.shape[-1] * self.factor**2
        parts = self._parts(latents / LATENT_SCALE, chunk, pixels)
        images = torch.cat([_full_precision(self.vae.decode(part).sample) for part in parts])
        return (images / 2 + 0.5).clamp(0, 1)

    def _parts(self, x: Tensor, chunk: int | None, pixels: int) -> Iterable[Tensor]:
        chunk = chunk or max(PIXELS_PER_CHUNK // pixels, 1)
        weight = self.vae.encoder.conv_in.weight
        return (part.to(weight) for part in x.split(chunk))


# ---------------------------------------------------------------------------------------------- loading


def build_clip(state: dict[str, Tensor], config: Mapping[str, Any], device="cpu", dtype=torch.float32) -> nn.Module:
    """open_clip's `CLIP` from weights in open_clip's names and {embed_dim, vision_cfg, text_cfg}; frozen.

    Empties `state`, so that weights are never held twice. ValueError for missing, misshapen or non-finite tensors.
    """
    from open_clip.model import CLIP

    with torch.device("meta"):
        clip = CLIP(**config)
    length = clip.context_length
    clip.attn_mask = torch.full((length, length), float("-inf")).triu(1)  # causal; no file holds it
    return _fill(clip, state, device, dtype, "CLIP")


def build_vae(state: dict[str, Tensor], config: Mapping[str, Any], device="cpu", dtype=torch.float32) -> nn.Module:
    """diffusers' `AutoencoderKL` from weights in its names and its config; otherwise as build_clip."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    return _fill(vae, state, device, dtype, "VAE")


def _fill(module: nn.Module, state: dict[str, Tensor], device, dtype, part: str) -> nn.Module:
    moved = {key: _moved(key, state.pop(key), device, dtype, part) for key in list(state)}
    expected = module.state_dict()
    missing = [key for key in expected if key not in moved]
    if missing:
        raise ValueError(f"The {part} file lacks {len(missing)} of {len(expected)} tensors, {missing[0]} among them.")
    for key, tensor in expected.items():
        if moved[key].shape != tensor.shape:
            raise ValueError(
                f"The {part} file's {key} has shape {list(moved[key].shape)} where {list(tensor.shape)} belongs."
            )
    module.load_state_dict({key: moved[key] for key in expected}, assign=True)
    # The buffers are still to be moved; diffusers' own `to` would warn of a choice that is meant.
    return nn.Module.to(module, device, dtype).eval().requires_grad_(False)


def _moved(key: str, tensor: Tensor, device, dtype, part: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.to(device)
    if not tensor.isfinite().all():
        raise ValueError(f"The {part} file's {key} holds values that are not numbers: the file is damaged.")
    return tensor.to(device, dtype)


def load_encoders(base: BaseFiles, device="cpu", dtype=torch.float32) -> Encoders:
    """The text encoder, image encoder and autoencoder of a base, frozen. ValueError if the base lacks a part."""
    for part, path in (("text and image encoder (CLIP)", base.clip), ("VAE", base.vae)):
        if path is None:
            raise ValueError(f"The base of {base.unet} has no {part}: put its file into the same folder.")
    from ..files.base import read_clip, read_vae

    state, config = read_clip(base.clip)
    clip = build_clip(state, config, device, dtype)
    state, config = read_vae(base.vae)
    vae = build_vae(state, config, device, dtype)
    return Encoders(OpenClipText(clip), OpenClipImage(clip), KLAutoencoder(vae))


def check_matches(unet_config, text: TextEncoder) -> None:
    """Raise ValueError unless the text encoder's states have the width of the UNet's context (`context_dim`)."""
    if text.width != unet_config.context_dim:
        raise ValueError(
            f"The UNet reads text states of width {unet_config.context_dim} and this text encoder gives {text.width}: "
            "use the CLIP file that belongs to the base (OpenCLIP ViT-H-14 for ModelScope)."
        )


def _checked_images(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"Images come as [N, 3, height, width]; these have shape {list(images.shape)}.")
    return images


def _full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
