"""Image encoders alone, in transformers' names: the same features as transformers', and a base's for guidance."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_image_base import VISION, random_state, vision_state, write_tiny_image_base
from torch import Tensor

from dreamvideo.encoders.clip import clip_pixels
from dreamvideo.encoders.clip_image import ClipImage, build_image
from dreamvideo.encoders.loading import offload_encoders, open_encoders, read_encoders
from dreamvideo.files.base import find_base
from dreamvideo.files.encoders import stored_clip
from dreamvideo.files.image_encoders import image_shapes, stored_image
from dreamvideo.files.inspection import describe, inspect
from dreamvideo.files.tensors import CheckpointError, write_safetensors


def save(path: Path, state: dict[str, Tensor]) -> Path:
    write_safetensors(path, state, {})
    return path


def in_transformers(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=config["width"],
            intermediate_size=config["hidden"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            image_size=config["size"],
            patch_size=config["patch"],
            projection_dim=config["projected"],
            hidden_act=config["activation"],
        )
    ).eval()
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("width", [32, 1280])  # heads of 64 and quick_gelu; ViT-H's heads of 80 and gelu
def test_the_image_tower_is_transformers(tmp_path: Path, width: int) -> None:
    given = VISION | {"width": width, "heads": max(1, width // 80), "hidden": 64}
    given |= {"activation": "gelu"} if width == 1280 else {}
    state = random_state(image_shapes(given))
    stored, config = stored_image(save(tmp_path / "model.safetensors", state))
    assert config == given
    images = ClipImage(build_image(dict(stored.stream()), config))
    assert images.width == 20 and images.image_size == 32
    pictures = torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = in_transformers(given, state)(clip_pixels(pictures, 32)).image_embeds
    torch.testing.assert_close(images.encode(pictures), wanted, atol=2e-5, rtol=1e-5)


def test_published_image_towers_are_counted() -> None:
    shapes = {"vit-h": (1280, 32, 5120, 14, 1024, 632_076_800), "vit-l": (1024, 24, 4096, 14, 768, 303_966_208)}
    for width, layers, hidden, patch, projected, numbers in shapes.values():
        config = {"width": width, "layers": layers, "hidden": hidden, "patch": patch, "size": 224}
        found = image_shapes(config | {"projected": projected})
        assert sum(math.prod(shape) for shape in found.values()) == numbers


@pytest.mark.parametrize("offload", [False, True])
def test_an_image_encoder_alone_guides(tmp_path: Path, offload: bool) -> None:
    """In diffusers' folder, under its own name beside a checkpoint, or given; among others of a whole model."""
    files = [
        (tmp_path / "a", "image_encoder/model.safetensors", ""),
        (tmp_path / "b", "CLIP-ViT-H-14.safetensors", ""),
        (tmp_path, "elsewhere.safetensors", "clip."),
    ]
    wanted = None
    for folder, name, prefix in files:
        given = save(folder / name, vision_state(prefix=prefix) | {f"{prefix}logit_scale": torch.zeros(1)})
        base = folder if folder != tmp_path else tmp_path / "c"
        write_tiny_image_base(base, images=False)
        stored = find_base(base, clip=given if base.name == "c" else None)
        assert (stored.clip, stored.vision) == (None, given) and not stored.missing
        opened = open_encoders(stored)
        encoders = offload_encoders(opened) if offload else read_encoders(opened)
        seen = encoders.image.encode(torch.ones(1, 3, 40, 40))
        assert seen.shape == (1, 20)
        wanted = seen if wanted is None else wanted
        torch.testing.assert_close(seen, wanted)
        assert encoders.fingerprint != open_encoders(replace(stored, vision=None)).fingerprint("cpu", torch.float32)
        assert "image encoder (CLIP)\n" in describe(inspect(given))
    assert "image encoder (CLIP)\n" in describe(inspect(tmp_path / "a"))


def test_half_a_tower_is_told(tmp_path: Path) -> None:
    state = vision_state()
    plain = {name: value for name, value in state.items() if "projection" not in name}
    with pytest.raises(CheckpointError, match="no visual_projection.weight.*guides"):
        stored_image(save(tmp_path / "plain.safetensors", plain))
    del state["vision_model.encoder.layers.1.mlp.fc2.bias"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.fc2\.bias is missing where \[32\] is needed"):
        stored_image(save(tmp_path / "cut.safetensors", state))
    with pytest.raises(CheckpointError, match="an image encoder without its text encoder"):
        stored_clip(save(tmp_path / "vision.safetensors", vision_state()))
