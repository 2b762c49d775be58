"""The demo runs on the embedded base and leaves what it promises."""

from __future__ import annotations

import json
from dataclasses import replace
from threading import Event
from time import sleep

import pytest
import torch

from dreamvideo import defaults
from dreamvideo.base import open_base
from dreamvideo.files.adapters import load_adapter
from dreamvideo.media.clips import read_clip
from dreamvideo.media.photographs import load_image
from dreamvideo.nano import demo, meanwhile
from dreamvideo.runs import Outcome, Reports


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
        patch.setattr(demo, "leaves_cores", lambda base: True)
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


def test_beside_the_subject_the_motion_is_the_same(left):
    base, settings = open_base(), defaults.EMBEDDED.settings("motion", seed=0)
    few = replace(settings, steps=settings.steps // 10)
    alone = demo._motion(base, demo.toy_material(base.defaults.frames), few, Reports()).adapter.adapter.state_dict()
    beside = load_adapter(left / "motion.safetensors").adapter.state_dict()
    assert alone.keys() == beside.keys() and all(torch.equal(alone[name], beside[name]) for name in alone)


def test_what_goes_on_meanwhile_is_heard_when_it_is_asked_for_and_else_stops():
    heard, began = [], Event()

    def work(reports: Reports) -> Outcome:
        reports.say("note")
        reports.progress("early", 1, 2, 0.0, 0.0, 0.0)
        began.set()
        while not (heard or reports.should_stop()):
            sleep(0.01)
        reports.progress("late", 2, 2, 0.0, 0.0, 0.0)
        return Outcome(None, {}, complete=not reports.should_stop())

    reports = Reports(progress=lambda stage, *rest: heard.append(stage), say=heard.append)
    with meanwhile.meanwhile(work, reports) as outcome:
        assert began.wait(10) and heard == []
        assert outcome().complete
    assert heard == ["note", "late"]
    heard.clear()
    with pytest.raises(ValueError, match="elsewhere"), meanwhile.meanwhile(work, reports):
        raise ValueError("elsewhere")
    assert heard == []
