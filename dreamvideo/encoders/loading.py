"""A base's encoders from its files, frozen: read at once or when they are asked; and whether they go with its UNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..files.base import BaseFiles
from ..files.encoders import stored_clip, stored_vae
from ..files.fingerprint import weights_digest
from ..files.image_encoders import stored_image
from ..files.tensors import StateDict
from ..files.text_encoders import stored_text
from .autoencoder import KLAutoencoder, build_vae, hollow_vae
from .clip import OpenClipImage, OpenClipText, build_clip, hollow_clip
from .clip_image import ClipImage, build_image, hollow_image
from .clip_text import ClipText, build_text, hollow_text
from .offloading import Offloaded
from .protocols import Encoders, ImageEncoder, NoImages, TextEncoder

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class StoredEncoders:
    """The encoders of a base in their files: looked at, and no tensor of them read yet.

    clip: open_clip's two towers, None where there are none. text, image: a tower of its own, which goes before theirs.
    """

    clip: StateDict | None
    clip_config: dict[str, Any]
    vae: StateDict
    vae_config: dict[str, Any]
    text: StateDict | None = None
    text_config: dict[str, Any] = field(default_factory=dict)
    image: StateDict | None = None
    image_config: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Of the text states."""
        if self.text is not None:
            return self.text_config["width"]
        assert self.clip is not None
        return self.clip.shapes["token_embedding.weight"][1]

    @property
    def parts(self) -> dict[str, StateDict]:
        """Text encoder, image encoder, where there is one, and autoencoder."""
        towers: dict[bool, list[str]] = {False: [], True: []}
        for name in self.clip or ():
            towers[name.startswith("visual.")].append(name)
        found = {"autoencoder": self.vae}
        if self.clip is not None:
            found = {
                "text encoder": self.clip.only(towers[False]),
                "image encoder": self.clip.only(towers[True]),
                **found,
            }
        own = {"text encoder": self.text, "image encoder": self.image}
        return found | {name: part for name, part in own.items() if part is not None}

    def fingerprint(self, device: torch.device | str, dtype: torch.dtype) -> str:
        """Names these weights and how they compute: with equal ones a picture is encoded alike."""
        weights = weights_digest(*filter(None, (self.clip, self.vae, self.text, self.image)))
        return f"{weights}-{torch.device(device).type}-{str(dtype).removeprefix('torch.')}-{torch.__version__}"


def open_encoders(base: BaseFiles) -> StoredEncoders:
    """The encoders of a base, not yet read. ValueError if the base lacks a part or a file is unusable."""
    clip_file = base.file("clip") if base.text is None else base.clip
    vae_file = base.file("vae")
    text = None if base.text is None else stored_text(base.text)
    image = None if base.vision is None else stored_image(base.vision)
    clip = None if clip_file is None else stored_clip(clip_file)
    vae = stored_vae(vae_file)
    nothing: tuple[None, dict[str, Any]] = (None, {})
    return StoredEncoders(*(clip or nothing), *vae, *(text or nothing), *(image or nothing))


def read_encoders(
    stored: StoredEncoders,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    say: Say = lambda text: None,
) -> Encoders:
    """The text encoder, image encoder and autoencoder, frozen; `say` hears what is read."""
    clip = tower = images = None
    if stored.clip is not None:
        say(f"Loading the text and image encoder ({file_and_size(stored.clip)}) ...")
        clip = build_clip(dict(stored.clip.stream(device, dtype)), stored.clip_config, device, dtype)
    if stored.text is not None:
        say(f"Loading the text encoder ({file_and_size(stored.text)}) ...")
        tower = build_text(dict(stored.text.stream(device, dtype)), stored.text_config, device, dtype)
    if stored.image is not None:
        say(f"Loading the image encoder ({file_and_size(stored.image)}) ...")
        images = build_image(dict(stored.image.stream(device, dtype)), stored.image_config, device, dtype)
    say(f"Loading the autoencoder ({file_and_size(stored.vae)}) ...")
    vae = build_vae(dict(stored.vae.stream(device, dtype)), stored.vae_config, device, dtype)
    return Encoders(*_faces(clip, tower, images), KLAutoencoder(vae), stored.fingerprint(device, dtype))


def _faces(
    clip: nn.Module | None, tower: nn.Module | None, images: nn.Module | None
) -> tuple[TextEncoder, ImageEncoder]:
    """Text and image encoder of open_clip's towers and of towers by themselves; for texts there is one of them."""
    image = NoImages() if clip is None else OpenClipImage(clip)
    if images is not None:
        image = ClipImage(images)
    if tower is not None:
        return ClipText(tower), image
    assert clip is not None
    return OpenClipText(clip), image


def offload_encoders(stored: StoredEncoders, dtype=torch.float32, say: Say = lambda text: None) -> Encoders:
    """The same on the CPU, whose weights stay in their files but while they are needed: see `Offloaded`."""
    clip = None if stored.clip is None else hollow_clip(stored.clip_config, dtype)
    tower = None if stored.text is None else hollow_text(stored.text_config, dtype)
    images = None if stored.image is None else hollow_image(stored.image_config, dtype)
    vae = hollow_vae(stored.vae_config, dtype)
    text, image = _faces(clip, tower, images)
    found: dict[str, tuple[Any, nn.Module | None]] = {
        "text encoder": (text, tower or clip),
        "image encoder": (image, images or clip),
        "autoencoder": (KLAutoencoder(vae), vae),
    }

    def offloaded(what: str) -> Any:
        encoder, module = found[what]
        if module is None:
            return encoder
        part = stored.parts[what]
        told = f"Loading the {what} ({file_and_size(part)}) ..."
        return Offloaded(encoder, module, part, dtype, lambda: say(told))

    parts = {name: offloaded(what) for name, what in zip(("text", "image", "vae"), found, strict=True)}
    return Encoders(**parts, fingerprint=stored.fingerprint("cpu", dtype))


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
            "use the one of the base (OpenCLIP ViT-H-14 for ModelScope, CLIP ViT-L for Stable Diffusion 1.5)."
        )
