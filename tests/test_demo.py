"""The demo runs on the embedded base and leaves what it promises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dreamvideo import defaults
from dreamvideo.base import open_base
from dreamvideo.files.adapters import load_adapter
from dreamvideo.media.clips import read_clip
from dreamvideo.media.photographs import load_image
from dreamvideo.nano import demo


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    base = open_base()
    material = demo.toy_material(base.defaults.frames)
    before = [parameter.clone() for parameter in base.unet.parameters()]
    training = dict(defaults.EMBEDDED.training)
    for stage in ("token", "identity"):  # the motion alone must have learned something
        training[stage] = {**training[stage], "steps": 50}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "EMBEDDED", replace(defaults.EMBEDDED, training=training))
        demo.run(base, material, out, quick=True, report=lambda line: None)
    assert all(torch.equal(old, new) for old, new in zip(before, base.unet.parameters(), strict=True))
    return out


def test_everything_is_there(left):
    expected = {"identity.safetensors", "motion.safetensors", "composed.mp4", "composed.gif", "sheet.png", "losses.png",
                "report.json"}  # fmt: skip
    assert expected <= {path.name for path in left.iterdir()}
    assert read_clip(left / "composed.mp4").frames.shape == (8, 3, 128, 128)
    assert load_image(left / "sheet.png").shape[0] == 3


def test_the_files_say_what_they_are(left):
    identity, motion = load_adapter(left / "identity.safetensors"), load_adapter(left / "motion.safetensors")
    assert identity.info.kind == "identity" and set(identity.tokens) == {demo.PLACEHOLDER}
    assert len(identity.features) == 4
    assert motion.info.kind == "motion" and not motion.tokens
    assert demo.MOTION in motion.info.captions[0]


def test_training_lowers_the_loss(left):
    report = json.loads((left / "report.json").read_text())
    assert set(report["seen"]) == {"no adapter", "subject", "motion", "subject and motion"}
    motion = report["training"]["motion"]
    assert motion["last_loss"] < motion["first_loss"]
