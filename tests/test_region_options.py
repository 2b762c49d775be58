"""Where and when adapters act, and regions, as the command line says it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dreamvideo.commands.regions import Given, given_adapter, limits_of, region_prompt
from dreamvideo.sampling import SamplingSettings

SETTINGS = SamplingSettings("a dog", frames=4, height=16, width=32)


def limits(text: str) -> dict:
    return limits_of(given_adapter(text), SETTINGS)


@pytest.mark.parametrize(
    ("text", "strength", "given"),
    [
        ("dog.safetensors", 1.0, {}),
        ("dog.safetensors@0.8", 0.8, {}),
        ("dog.safetensors[area=left]", 1.0, {"area": "left"}),
        ("dog.safetensors@0.8[ area=left, frames=0..0.5]", 0.8, {"area": "left", "frames": "0..0.5"}),
        ("me@home/dog.safetensors", 1.0, {}),
    ],
)
def test_an_adapter_is_named_with_its_strength_and_its_limits(text, strength, given):
    named = given_adapter(text)
    assert (named.strength, dict(named.limits)) == (strength, given)
    assert named.path.name == ("dog.safetensors")


def test_a_file_may_be_called_as_a_limit_is_written(tmp_path):
    path = tmp_path / "a@0.5[area=left].safetensors"
    path.touch()
    assert given_adapter(str(path)) == Given(path)


def test_limits_are_a_stack_entry_s_fields():
    assert limits("a[steps=0..0.6,ramp=1..0,depth=0.5]") == {
        "window": (0.0, 0.6),
        "ramp": (1.0, 0.0),
        "depth": (0.5, 0.5),
    }
    assert limits("a[guided=0.6]") == {"guided_from": 0.6}
    mask = limits("a[area=left,frames=0.5..1]")["mask"]  # [F, H, W]
    assert mask.shape == (4, 16, 32)
    assert mask[:2].sum() == 0 and (mask[2:, :, :16] == 1).all() and mask[2:, :, 16:].sum() == 0


def test_an_area_is_painted_in_a_picture_or_moves_in_pictures(tmp_path):
    for index in range(2):
        picture = np.zeros((16, 32), np.uint8)
        picture[:, 16 * index : 16 * (index + 1)] = 255
        (tmp_path / "moving").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "moving" / f"{index}.png")
    still = limits(f"a[area={tmp_path / 'moving' / '1.png'}]")["mask"]
    assert still.shape == (4, 16, 32) and still[:, :, 16:].min() == 1 and still[:, :, :16].max() == 0
    moving = limits(f"a[area={tmp_path / 'moving'}]")["mask"]
    assert torch.equal(moving[:2], 1 - moving[2:]) and moving[0, :, :16].min() == 1


def test_a_region_has_an_area_and_a_prompt():
    region = region_prompt("left[frames=0..0.5]: a dog: it runs", SETTINGS)
    assert region.prompt == "a dog: it runs"
    assert region.mask[0, :, :16].min() == 1 and region.mask[0, :, 16:].max() == 0 and region.mask[2:].max() == 0
    assert (region.apart, region_prompt("left[apart=0.3]: a dog", SETTINGS).apart) == (0, 0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a[area=middle]", "An area is all, left, right, top, bottom"),
        ("a[colour=red]", "In brackets stand area=, steps="),
        ("a[steps=early]", "steps=0..0.5"),
        ("a[guided=late]", "guided=0.5"),
        ("a[frames=0.5..0.2]", "start to a later end"),
    ],
)
def test_what_cannot_be_read_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        limits(text)


@pytest.mark.parametrize("text", ["left", "left:a dog", ": a dog", "left: ", "left[apart=2]: a dog"])
def test_what_is_no_region_is_told(text):
    with pytest.raises(ValueError, match="region is"):
        region_prompt(text, SETTINGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [("left[steps=0..1]: a dog", "In brackets stand frames=, apart="), ("left[apart=soon]: a dog", "apart=0.5")],
)
def test_what_limits_no_region_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        region_prompt(text, SETTINGS)
