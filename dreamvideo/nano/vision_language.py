"""Trains the embedded base's text and image encoders: an open_clip CLIP in miniature, by contrast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import wild, world
from .progress import Loop

PIXELS = 64  # a side of what the image encoder sees
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": PIXELS, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}


def build() -> Any:
    """The untrained CLIP. Words that pictures cannot teach, such as left and right, must differ from the start."""
    import open_clip

    model: Any = open_clip.model.CLIP(**CONFIG)
    torch.nn.init.normal_(model.token_embedding.weight, std=0.1)
    return model


def caption_of(scene: world.Scene, generator: torch.Generator, moving: bool = True) -> str:
    """The scene's caption, sometimes with its looks or its place left open, as captions of the wild do."""
    looks, place = torch.rand(2, generator=generator).tolist()
    name = world.CLASS_WORD if looks < 0.15 and scene.companion is None else scene.words
    words = ["a", name] + ([scene.motion] if moving else []) + ([scene.place] if place > 0.1 else [])
    return " ".join(words)


def _batch(generator: torch.Generator, count: int) -> tuple[Tensor, list[str]]:
    """Frames [count, 3, 64, 64] and their captions."""
    scenes = [wild.scene(generator) for _ in range(count)]
    pick = torch.randint(world.FRAMES, (count,), generator=generator).tolist()
    frames = torch.stack(
        [world.render(scene, size=PIXELS).frames[index] for scene, index in zip(scenes, pick, strict=True)]
    )
    return frames, [scene.caption for scene in scenes]


def train(folder: Path, steps: int, device: torch.device | str = "cpu") -> None:
    """Train to `folder`/clip.pt, resuming what is there."""
    torch.manual_seed(0)
    _contrast(folder / "clip.pt", build().to(device), steps)


def settle(folder: Path, state: dict[str, Tensor], steps: int, device: torch.device | str = "cpu") -> None:
    """Bring the text tower's last block and projection back to the pictures, to `folder`/settled.pt, from a start.

    state: of a CLIP whose text blocks before the last were trained on with the UNet. Those and the image tower stay.
    """
    (folder / "settled.pt").unlink(missing_ok=True)  # perhaps it goes with an earlier state of the UNet
    model = build()
    model.load_state_dict(state)
    model.requires_grad_(False)
    model.transformer.resblocks[-1].requires_grad_(True)
    model.text_projection.requires_grad_(True)
    _contrast(folder / "settled.pt", model.to(device), steps)


def _contrast(path: Path, model, steps: int, batch: int = 64, learning_rate: float = 1e-3) -> None:
    from ..encoders.clip import OpenClipText, clip_pixels

    text = OpenClipText(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate, betas=(0.9, 0.98))
    loop = Loop(path, model, optimizer, steps)
    for step in loop:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 50, (steps - step) / (0.5 * steps))
        frames, captions = _batch(generator, batch)
        device = model.logit_scale.device
        tokens = torch.tensor([text.tokenize(caption)[0] for caption in captions], device=device)
        images = F.normalize(model.encode_image(clip_pixels(frames.to(device), PIXELS)), dim=-1)
        texts = F.normalize(model.encode_text(tokens), dim=-1)
        logits = model.logit_scale.exp().clamp(max=50) * images @ texts.T  # [N, N]
        target = torch.arange(batch, device=device)
        loop.update((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
