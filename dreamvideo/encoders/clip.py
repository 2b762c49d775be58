"""open_clip's CLIP, both towers, behind the protocols. Whatever its precision, results leave in float32."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.resizing import area_average
from ..models.threads import threads_for
from ..safety.texts import quoted
from .prompts import Piece, check_placeholder, clip_tokenizer, read_weights, split_prompt
from .protocols import checked_images, full_precision
from .weights import filled

log = logging.getLogger(__name__)

START, END, PAD = 49406, 49407, 0  # CLIP's byte-pair vocabulary; the base was trained with 0 behind the end token
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class OpenClipText:
    """The text tower of an open_clip `CLIP`: all blocks but the last, then the final norm, all positions.

    This is the "penultimate" text state that ModelScope's UNet was trained on. Gradients reach the learned tokens, and
    the tower's weights where they ask for them.
    """

    pad = PAD  # behind the end
    least_blocks = 2

    def __init__(self, clip: nn.Module):
        self.clip: Any = clip  # torch knows no types of a module's parts
        layers = len(self._layers())
        if layers < self.least_blocks:
            raise ValueError(f"A text tower needs at least 2 blocks to have a penultimate one; this one has {layers}.")
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
        return full_precision(self.clip.token_embedding.weight.detach()[ids])

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
            found = [self.pad] * counts[piece] if learned else clip_tokenizer().encode(piece)
            ids += found
            slots += [(piece, row) if learned else ("", 0) for row in range(len(found))]
            weights += [weight] * len(found)
        length = self.clip.context_length
        self._tell_if_cut(prompt, ids, slots, length - 1)
        ids = [*ids[: length - 1], END]
        slots = [*slots[: length - 1], ("", 0)]
        weights = [*weights[: length - 1], 1.0]
        missing = length - len(ids)
        return ids + [self.pad] * missing, slots + [("", 0)] * missing, weights + [1.0] * missing

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
        with threads_for(self.clip, device):
            x = full_precision(self.clip.ln_final(self._blocks(x)))
        return _weigh(x[:-1], x[-1], weights[:-1]) if weighs else x

    def places(self, prompts: Sequence[str], tokens: Mapping[str, Tensor]) -> Tensor:
        """Where learned tokens [n, D] stand in the text states of B prompts: bool [B, 77]."""
        counts = {name: len(rows) for name, rows in tokens.items()}
        return torch.tensor([[bool(name) for name, _ in self.tokenize(prompt, counts)[1]] for prompt in prompts])

    def _checked(self, name: str, rows: Tensor) -> Tensor:
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self.width or not len(rows):
            raise ValueError(
                f"The token {quoted(name)} has shape {list(rows.shape)} and this text encoder takes vectors of width "
                f"{self.width}: it was learned on another base."
            )
        return rows

    def _layers(self) -> Any:
        return self.clip.transformer.resblocks

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
        self.clip: Any = clip  # torch knows no types of a module's parts

    @property
    def width(self) -> int:
        return self.clip.visual.output_dim

    @property
    def image_size(self) -> int:
        size = self.clip.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def _weight(self) -> Tensor:
        """One of the tower's, for its device and precision."""
        return self.clip.visual.conv1.weight

    def to(self, *args: Any, **kwargs: Any) -> OpenClipImage:
        """Move the CLIP this is a face of, as `nn.Module.to`."""
        self.clip.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W] in 0..1 of any size."""
        weight = self._weight
        pixels = clip_pixels(checked_images(images).to(weight.device, torch.float32), self.image_size)
        with threads_for(self.clip, weight.device):
            return full_precision(self.clip.encode_image(pixels.to(weight.dtype)))


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


def build_clip(
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """open_clip's `CLIP` from weights in open_clip's names and {embed_dim, vision_cfg, text_cfg}; frozen.

    Empties `state`, so that weights are never held twice. ValueError for missing, misshapen or non-finite tensors.
    """
    return filled(hollow_clip(config), state, device, dtype, "CLIP")


def hollow_clip(config: Mapping[str, Any], dtype=torch.float32) -> nn.Module:
    """open_clip's `CLIP`, frozen, on the CPU with all that no file holds; its weights are on the meta device."""
    from open_clip.model import CLIP

    with torch.device("meta"):
        clip = CLIP(**config).to(dtype)
    length = clip.context_length
    clip.attn_mask = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)  # causal
    return clip.eval().requires_grad_(False)
