"""A base's encoders from its files, frozen: read at once or when they are asked; and whether they go with its UNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..files.base import BaseFiles
from ..files.encoders import stored_clip, stored_vae
from ..files.fingerprint import weights_digest
from ..files.tensors import StateDict
from .autoencoder import KLAutoencoder, build_vae, hollow_vae
from .clip import OpenClipImage, OpenClipText, build_clip, hollow_clip
from .offloading import Offloaded
from .protocols import Encoders, TextEncoder

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class StoredEncoders:
    """The encoders of a base in their files: looked at, and no tensor of them read yet."""

    clip: StateDict
    clip_config: dict[str, Any]
    vae: StateDict
    vae_config: dict[str, Any]

    @property
    def width(self) -> int:
        """Of the text states."""
        return self.clip.shapes["token_embedding.weight"][1]

    @property
    def parts(self) -> dict[str, StateDict]:
        """Text encoder, image encoder and autoencoder."""
        towers: dict[bool, list[str]] = {False: [], True: []}
        for name in self.clip:
            towers[name.startswith("visual.")].append(name)
        return {
            "text encoder": self.clip.only(towers[False]),
            "image encoder": self.clip.only(towers[True]),
            "autoencoder": self.vae,
        }

    def fingerprint(self, device: torch.device | str, dtype: torch.dtype) -> str:
        """Names these weights and how they compute: with equal ones a picture is encoded alike."""
        weights = weights_digest(self.clip, self.vae)
        return f"{weights}-{torch.device(device).type}-{str(dtype).removeprefix('torch.')}-{torch.__version__}"


def open_encoders(base: BaseFiles) -> StoredEncoders:
    """The encoders of a base, not yet read. ValueError if the base lacks a part or a file is unusable."""
    clip_file, vae_file = base.file("clip"), base.file("vae")
    (clip, clip_config), (vae, vae_config) = stored_clip(clip_file), stored_vae(vae_file)
    return StoredEncoders(clip, clip_config, vae, vae_config)


def read_encoders(
    stored: StoredEncoders,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    say: Say = lambda text: None,
) -> Encoders:
    """The text encoder, image encoder and autoencoder, frozen; `say` hears what is read."""
    say(f"Loading the text and image encoder ({file_and_size(stored.clip)}) ...")
    clip = build_clip(dict(stored.clip.stream(device, dtype)), stored.clip_config, device, dtype)
    say(f"Loading the autoencoder ({file_and_size(stored.vae)}) ...")
    vae = build_vae(dict(stored.vae.stream(device, dtype)), stored.vae_config, device, dtype)
    named = stored.fingerprint(device, dtype)
    return Encoders(OpenClipText(clip), OpenClipImage(clip), KLAutoencoder(vae), named)


def offload_encoders(stored: StoredEncoders, dtype=torch.float32, say: Say = lambda text: None) -> Encoders:
    """The same on the CPU, whose weights stay in their files but while they are needed: see `Offloaded`."""
    clip, vae = hollow_clip(stored.clip_config, dtype), hollow_vae(stored.vae_config, dtype)
    encoders = (OpenClipText(clip), clip), (OpenClipImage(clip), clip), (KLAutoencoder(vae), vae)
    found: list[Any] = []
    for (encoder, module), (what, part) in zip(encoders, stored.parts.items(), strict=True):
        told = f"Loading the {what} ({file_and_size(part)}) ..."
        found.append(Offloaded(encoder, module, part, dtype, lambda told=told: say(told)))
    text, image, autoencoder = found
    return Encoders(text, image, autoencoder, stored.fingerprint("cpu", dtype))


def load_encoders(base: BaseFiles, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Encoders:
    """The text encoder, image encoder and autoencoder of a base, frozen. ValueError if the base lacks a part."""
    return read_encoders(open_encoders(base), device, dtype)


def file_and_size(state: StateDict) -> str:
    """E.g. "open_clip_pytorch_model.bin, 3.7 GiB"."""
    nbytes = sum(spec.nbytes for spec in state.specs.values())
    size = f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 / 10 else f"{nbytes / 2**20:.1f} MiB"
    return f"{state.file.path.name}, {size}"


def check_matches(unet_config, text: TextEncoder | StoredEncoders) -> None:
    """Raise ValueError unless the text encoder's states have the width of the UNet's context (`context_dim`)."""
    if text.width != unet_config.context_dim:
        raise ValueError(
            f"The UNet reads text states of width {unet_config.context_dim} and this text encoder gives {text.width}: "
            "use the CLIP file that belongs to the base (OpenCLIP ViT-H-14 for ModelScope)."
        )
