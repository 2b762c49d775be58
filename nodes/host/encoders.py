"""The host's CLIP, CLIP_VISION and VAE behind the engine's encoder protocols, and a CLIP that knows learned tokens."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.clip_model
import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...dreamvideo.base import Base
from ...dreamvideo.encoders.clip import clip_pixels, tell_what_is_cut
from ...dreamvideo.encoders.layered import layers_of
from ...dreamvideo.encoders.prompts import check_placeholder
from ...dreamvideo.encoders.protocols import LATENT_SCALE, Encoders, Moments
from ...dreamvideo.models.threads import threads_for
from ...dreamvideo.safety.texts import quoted
from ..placeholders import LAYERS, PlaceholderTokenizer
from .layered import as_layered


def _out_of_place(layer, x, mask=None, optimized_attention=None, **_):
    attention = attention_pytorch if torch.is_grad_enabled() else optimized_attention
    x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
    return x + layer.mlp(layer.layer_norm2(x))


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """The host's CLIP layers add in place, over what autograd has kept; the same numbers without that."""
    layers = [layer for layer in module.modules() if isinstance(layer, comfy.clip_model.CLIPLayer)]
    for layer in layers:
        layer.forward = types.MethodType(_out_of_place, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class HostText:
    """The engine's TextEncoder over a CLIP of the host."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        self._told: set[str] = set()  # which prompts were too long
        stage = clip.cond_stage_model
        self.encoder = getattr(stage, getattr(stage, "clip", ""), None)
        if not hasattr(self.encoder, "transformer") or not hasattr(self.encoder.transformer, "get_input_embeddings"):
            raise ValueError(
                f"This CLIP is a {type(stage).__name__}, which no base here reads: take that of Load ModelScope T2V "
                "(OpenCLIP ViT-H-14), or for Stable Diffusion 1.5 that of Load Checkpoint (CLIP ViT-L)."
            )

    @property
    def embeddings(self) -> Tensor:
        return self.encoder.transformer.get_input_embeddings().weight

    @property
    def width(self) -> int:
        return self.embeddings.shape[1]

    def check_placeholder(self, name: str, taken: Sequence[str] = ()) -> None:
        check_placeholder(name, taken)

    def embed_word(self, word: str) -> Tensor:
        chunk = next(iter(self.clip.tokenize(word, disable_weights=True).values()))[0]
        ids = [item[0] for item in chunk[1:]]
        ids = ids[: ids.index(self.encoder.special_tokens["end"])]
        if not ids:
            raise ValueError(f"The word {quoted(word)} holds nothing to start a token from; give a word such as dog.")
        return self.embeddings.detach()[ids].float().cpu().clone()

    def encode(
        self, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None, *, weighted: bool = False
    ) -> Tensor:
        # No clone of the CLIP: the host would load it anew in every training step.
        tokenizer = _tokenizer_of(self.clip, tokens or {})
        network = self.clip.cond_stage_model
        with threads_for(network, self.clip.patcher.load_device), _differentiable(network):
            return torch.cat([self._encode(tokenizer, prompt, weighted) for prompt in prompts])

    def places(self, prompts: Sequence[str], tokens: Mapping[str, Tensor]) -> Tensor:
        tokenizer = _tokenizer_of(self.clip, tokens)
        chunks = [next(iter(_tokenized(tokenizer, prompt, weighted=False).values()))[0] for prompt in prompts]
        own = [[isinstance(token, Tensor) and bool(_name_of(token, tokens)) for token, *_ in chunk] for chunk in chunks]
        return torch.tensor(own)

    def _encode(self, tokenizer: PlaceholderTokenizer, prompt: str, weighted: bool) -> Tensor:
        found = _tokenized(tokenizer, prompt, weighted)
        # The base was trained on one; a word with a vector a layer that the CLIP knew before has their mean here.
        first = {encoder: chunks[:1] for encoder, chunks in found.items() if encoder != LAYERS}
        self._tell_if_cut(prompt, next(iter(found.values())), tokenizer.tokens)
        return self.clip.encode_from_tokens(first).float()

    def _tell_if_cut(self, prompt: str, chunks: Sequence[Sequence[tuple]], tokens: Mapping[str, Tensor]) -> None:
        if len(chunks) == 1:
            return
        read, *rest = (self._between_ends(chunk) for chunk in chunks)
        left_out = [(0, _name_of(token, tokens)) if isinstance(token, Tensor) else (token, "")
                    for chunk in rest for token in chunk]  # fmt: skip
        tell_what_is_cut(len(read) + len(left_out), len(chunks[0]) - 2, left_out, told=prompt in self._told)
        self._told.add(prompt)

    def _between_ends(self, chunk: Sequence[tuple]) -> list[int | Tensor]:
        found: list[int | Tensor] = []
        for token, *_ in chunk[1:]:
            if isinstance(token, int) and token == self.encoder.special_tokens["end"]:
                break
            found.append(token)
        return found


def _tokenized(tokenizer: PlaceholderTokenizer, prompt: str, weighted: bool) -> dict[str, list]:
    # The host reads escapes of brackets where it reads no weights, too: there the backslash is escaped.
    text = prompt if weighted else re.sub(r"\\(?=[()])", r"\\\\", prompt)
    return tokenizer.tokenize_with_weights(text, disable_weights=not weighted)


def _name_of(row: Tensor, tokens: Mapping[str, Tensor]) -> str:
    """The placeholder whose vectors a row is of; "" for one of the host's own embeddings."""
    place = row.untyped_storage().data_ptr()
    return next((name for name, rows in tokens.items() if rows.untyped_storage().data_ptr() == place), "")


class HostImage:
    """The engine's ImageEncoder over a CLIP_VISION, with the engine's own scaling, which is the authors'."""

    def __init__(self, vision: Any) -> None:
        self.vision = vision
        if not hasattr(vision.model, "visual_projection"):
            raise ValueError("This CLIP_VISION gives no projected features: use OpenCLIP ViT-H-14's image encoder.")

    @property
    def width(self) -> int:
        return self.vision.model.visual_projection.weight.shape[0]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        comfy.model_management.load_model_gpu(self.vision.patcher)
        pixels = clip_pixels(images.float(), self.vision.image_size).to(self.vision.load_device)
        with threads_for(self.vision.model, pixels.device):
            return self.vision.model(pixel_values=pixels, intermediate_output=-2)[2].float().cpu()


class NoImage:
    """Where no CLIP_VISION is connected: features that are thrown away again."""

    width = 1

    def encode(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1)


class HostVAE:
    """The engine's Autoencoder over a VAE of the host."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        network = vae.first_stage_model
        if vae.latent_channels != 4 or not (hasattr(network, "quant_conv") and hasattr(network, "encoder")):
            raise ValueError(
                f"This VAE is a {type(network).__name__} with {vae.latent_channels} latent channels; the bases "
                "here take Stable Diffusion's (any SD 1 or 2 VAE, VQGAN_autoencoder among them)."
            )

    @torch.no_grad()
    def encode(self, images: Tensor, chunk: int | None = None) -> Moments:
        vae = self.vae
        memory = vae.memory_used_encode((chunk or 8, *images.shape[1:]), vae.vae_dtype)
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
        with threads_for(vae.first_stage_model, torch.device(vae.device)):
            parts = [self._moments(part) for part in images.split(chunk or 8)]
        mean, logvar = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        return Moments(mean * LATENT_SCALE, std * LATENT_SCALE)

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        network = self.vae.first_stage_model
        pixels = self.vae.process_input(images).to(self.vae.device, self.vae.vae_dtype)
        return network.quant_conv(network.encoder(pixels)).float().cpu().chunk(2, dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        with threads_for(self.vae.first_stage_model, torch.device(self.vae.device)):
            return self.vae.decode(latents / LATENT_SCALE).movedim(-1, 1).float()


def networks_of(base: Base, vae: Any, vision: Any) -> dict[str, nn.Module]:
    """The networks behind a base whose encoders are the host's, by what people call them."""
    return {
        "UNet": base.unet,
        "CLIP": base.encoders.text.clip.cond_stage_model,
        "CLIP vision": vision.model,
        "VAE": vae.first_stage_model,
    }


def encoders_of(clip: Any, vae: Any, vision: Any | None) -> Encoders:
    return Encoders(HostText(clip), NoImage() if vision is None else HostImage(vision), HostVAE(vae))


def with_tokens(clip: Any, tokens: Mapping[str, Tensor]) -> Any:
    """A clone of a CLIP whose prompts know learned tokens: placeholder -> [n, D], or [L, n, D], one a layer."""
    if not tokens:
        return clip
    clone = clip.clone()
    clone.tokenizer = _tokenizer_of(clip, tokens)
    if layers_of(clone.tokenizer.tokens) is not None:
        as_layered(clone)
    return clone


def _tokenizer_of(clip: Any, tokens: Mapping[str, Tensor]) -> PlaceholderTokenizer:
    """The tokenizer of a CLIP, with more learned tokens. ValueError where they were learned for another."""
    width = HostText(clip).width
    for name, vectors in tokens.items():
        if vectors.shape[-1] != width:
            raise ValueError(
                f"The token {name} was learned for text states of width {vectors.shape[-1]} and this CLIP has {width}: "
                "it belongs to another base."
            )
    host, known = clip.tokenizer, {}
    if isinstance(host, PlaceholderTokenizer):
        host, known = host.host, host.tokens
    return PlaceholderTokenizer(host, {**known, **tokens})
