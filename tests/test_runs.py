"""Whole trainings: what they write, what they go on from, and what is kept of them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import CONFIG, fake_encoders, pictures, tiny_unet
from PIL import Image

from dreamvideo.base import Base
from dreamvideo.defaults import EMBEDDED
from dreamvideo.files.adapters import load_adapter, save_adapter
from dreamvideo.files.tensors import open_file
from dreamvideo.media.photographs import Photo
from dreamvideo.plans import subject_plan
from dreamvideo.runs import Outcome, Reports, sample, train, train_motion, train_subject
from dreamvideo.training import places
from dreamvideo.training.data import encode_photos
from dreamvideo.training.methods import SUBJECT_METHODS
from dreamvideo.training.places import beside, claimed, sheet_path, snapshots_of
from dreamvideo.training.state_folder import states_in

ENCODERS = fake_encoders()
SETTINGS = {"steps": 6, "learning_rate": 0.02, "batch_size": 2, "masked": False, "shift": 0}
NAMED = {"placeholder": "<toy>", "class_word": "toy"}


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(tiny_unet(), ENCODERS, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def photos():
    return [Photo(picture, None, None, Path("toy.png")) for picture in pictures(2)]


def learn(base, photos, out, steps=6, token_steps=3, reports=None, **options) -> Outcome:
    tokens = {"steps": token_steps, "learning_rate": 0.02}
    settings = {**SETTINGS, "steps": steps, **options}
    return train_subject(base, photos, out=out, reports=reports, token_settings=tokens, **NAMED, **settings)


def stop_after(stage: str, step: int) -> Reports:
    seen = []
    return Reports(lambda *told: seen.append(told[:2]), should_stop=lambda: (stage, step) in seen)


def rows(out) -> list[tuple[str, int]]:
    with open(out.with_suffix(".losses.csv"), newline="") as file:
        return [(row["stage"], int(row["step"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("stage", "step"), [("token", 2), ("identity", 1), ("identity", 4)])
def test_a_run_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(base, photos, tmp_path, stage, step):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    learn(base, photos, whole)
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        learn(base, photos, stopped, reports=stop_after(stage, step))
    assert not stopped.exists()
    learn(base, photos, stopped)
    assert stopped.read_bytes() == whole.read_bytes()
    table = ".losses.csv"
    assert stopped.with_suffix(table).read_bytes() == whole.with_suffix(table).read_bytes()


def test_more_steps_go_on_and_fewer_begin_anew_and_say_so(base, photos, tmp_path):
    out, seen, said = tmp_path / "toy.safetensors", [], []
    reports = Reports(lambda *told: seen.append(told[:2]), say=said.append)
    learn(base, photos, out, 4)
    learn(base, photos, out, 6, reports=reports)
    assert seen == [("identity", 5), ("identity", 6)]
    learn(base, photos, out, 2, reports=reports)
    assert any("6 steps, more than the 2 asked for: beginning anew" in text for text in said)
    with pytest.raises(KeyboardInterrupt):
        learn(base, photos, out, 6, reports=stop_after("identity", 5))
    with pytest.raises(ValueError, match=r"5 steps, more than the 3 asked for; ask for more steps, or begin anew"):
        learn(base, photos, out, 3)


def test_another_word_makes_other_looks(base, photos, tmp_path):
    """Looks are learned under their word: with another one, of more steps, they begin anew, and the word goes on."""
    out, fresh, seen = tmp_path / "toy.safetensors", tmp_path / "fresh.safetensors", []
    learn(base, photos, out, 4, token_steps=2)
    learn(base, photos, out, 4, token_steps=3, reports=Reports(lambda *told: seen.append(told[:2])))
    assert seen == [("token", 3), *(("identity", step) for step in range(1, 5))]
    learn(base, photos, fresh, 4, token_steps=3)
    assert out.read_bytes() == fresh.read_bytes()
    assert len(states_in(beside(out).states)) == 2


def test_states_and_records_of_earlier_versions_are_gone_on_from(base, photos, tmp_path):
    """They call a subject's second state by its kind alone, and tell steps of the last stage beside a token's."""
    whole, out = tmp_path / "whole.safetensors", tmp_path / "toy.safetensors"
    learn(base, photos, whole)
    with pytest.raises(KeyboardInterrupt):
        learn(base, photos, out, reports=stop_after("identity", 4))
    states = beside(out).states
    (named,) = states.glob("identity-*.safetensors")
    named.rename(states / "identity.safetensors")
    record = json.loads((states / "run.json").read_text())
    record["run"]["token_steps"], record["steps"] = record["steps"]["token"], record["steps"]["identity"]
    (states / "run.json").write_text(json.dumps(record))
    seen = []
    learn(base, photos, out, reports=Reports(lambda *told: seen.append(told[:2])))
    assert seen == [("identity", 5), ("identity", 6)] and out.read_bytes() == whole.read_bytes()


def test_losses_are_there_while_a_training_goes_on(base, photos, tmp_path):
    out, seen = tmp_path / "toy.safetensors", []
    learn(base, photos, out, reports=Reports(lambda stage, step, *rest: seen.append((stage, step, rows(out)[-1]))))
    assert all(last == (stage, step) for stage, step, last in seen)
    expected = [("token", step) for step in (1, 2, 3)] + [("identity", step) for step in range(1, 7)]
    assert rows(out) == expected


def test_losses_of_steps_that_are_made_again_stand_there_once(base, photos, tmp_path):
    """A kill between two states: the table is ahead of the state that is gone on from."""
    out, table = tmp_path / "toy.safetensors", tmp_path / "toy.losses.csv"
    with pytest.raises(KeyboardInterrupt):
        learn(base, photos, out, reports=stop_after("identity", 3))
    table.write_text(table.read_text() + "identity,4,9.0\nidentity,5,9.0\n")
    during = []
    learn(base, photos, out, reports=Reports(lambda *told: during.append(rows(out))))
    assert during[0] == [("token", 1), ("token", 2), ("token", 3), *(("identity", step) for step in range(1, 5))]


def test_snapshots_are_adapters_and_the_sheet_compares_them(base, photos, tmp_path):
    out = tmp_path / "toy.safetensors"
    shorter = learn(base, photos, tmp_path / "short.safetensors", 4).adapter
    learn(base, photos, out, 5, snapshot_every=2)
    found = snapshots_of(out)
    assert [step for step, _ in found] == [2, 4]
    snapshot = load_adapter(found[1][1])
    assert snapshot.info.steps == 4 and torch.equal(snapshot.tokens["<toy>"], shorter.tokens["<toy>"])
    for name, weight in shorter.adapter.state_dict().items():
        assert torch.equal(snapshot.adapter.state_dict()[name], weight)
    assert Image.open(sheet_path(out)).height > 3 * 64  # a row each, and the adapter itself


def test_the_sheet_shows_snapshots_of_this_training_alone(base, photos, tmp_path, monkeypatch):
    out, shown = tmp_path / "toy.safetensors", []
    other = learn(base, photos, tmp_path / "other.safetensors", 3, offset_noise=0.3).place.out
    other.rename(tmp_path / "toy.step-00003.safetensors")

    def look(base, data, trained, seed, callback):
        shown.append(trained.info.steps)
        return "a toy", torch.zeros(2, 3, 8, 8)

    monkeypatch.setattr("dreamvideo.previews.preview_video", look)
    learn(base, photos, out, 5, snapshot_every=2)
    assert shown == [2, 4, 5]


def test_a_full_size_adapter_is_saved_in_half_precision(base, photos, tmp_path, monkeypatch):
    out = tmp_path / "toy.safetensors"
    halved = replace(EMBEDDED, adapter_dtype=torch.float16)
    monkeypatch.setattr("dreamvideo.base.defaults_for", lambda config: halved)
    outcome = learn(base, photos, out)
    stored = open_file(out).tensors
    assert {spec.dtype for name, spec in stored.items() if "linear" in name} == {torch.float16}
    assert stored["token.<toy>"].dtype == torch.float32
    read = load_adapter(out).adapter.state_dict()
    for name, weight in outcome.adapter.adapter.state_dict().items():
        torch.testing.assert_close(read[name].float(), weight, rtol=1e-3, atol=1e-5)


def test_weights_beyond_half_precision_are_kept_whole(base, photos, tmp_path):
    adapter = learn(base, photos, tmp_path / "toy.safetensors").adapter
    next(adapter.adapter.parameters()).data.fill_(1e6)
    save_adapter(tmp_path / "large.safetensors", adapter.adapter, adapter.info, dtype=torch.float16)
    assert next(load_adapter(tmp_path / "large.safetensors").adapter.parameters()).max() == 1e6


def test_model_managers_are_told_what_a_file_is(base, photos, tmp_path):
    learn(base, photos, tmp_path / "toy.safetensors")
    told = open_file(tmp_path / "toy.safetensors").metadata
    assert told["modelspec.title"] == told["modelspec.trigger_phrase"] == "<toy>"
    assert told["modelspec.architecture"].endswith("dreamvideo-identity")
    assert told["modelspec.resolution"] == "32x32"


def test_two_faces_that_claim_differently_write_the_same_bytes(base, photos, tmp_path):
    data = encode_photos([photo.image for photo in photos], "a <toy>", ENCODERS)
    tokens = {"steps": 3, "learning_rate": 0.02}
    row = SUBJECT_METHODS["dreamvideo"]
    plan = subject_plan(base.defaults, CONFIG, row, **NAMED, settings=SETTINGS, token_settings=tokens)
    run = plan.run("photos", base.fingerprint)
    beside_it, apart = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with claimed(beside_it, beside_it, run, restart=False) as place:
        train(base, data, plan, place)
    with places.shelved(apart, tmp_path / "states" / "x", tmp_path / "shelf", run, restart=False) as place:
        train(base, data, plan, place)
    assert beside_it.read_bytes() == apart.read_bytes()
    assert not (tmp_path / "states" / "x").exists() and len(states_in(tmp_path / "shelf" / "x")) == 2


def test_what_is_stopped_on_a_shelf_leaves_nothing_but_its_states(base, photos, tmp_path):
    """Its file's name is not its own yet: gone on with, it will have another."""
    data = encode_photos([photo.image for photo in photos], "a <toy>", ENCODERS)
    row = SUBJECT_METHODS["dreamvideo"]
    plan = subject_plan(base.defaults, CONFIG, row, **NAMED, settings=SETTINGS, token_settings={"steps": 2})
    out, states = tmp_path / "out" / "a_00001_.safetensors", tmp_path / "states" / "x"
    run = plan.run("photos", base.fingerprint)
    with (
        pytest.raises(KeyboardInterrupt),
        places.shelved(out, states, tmp_path / "shelf", run, restart=False) as place,
    ):
        train(base, data, plan, place, stop_after("identity", 2))
    assert len(states_in(states)) == 2 and not list(out.parent.iterdir())


def test_a_finished_training_is_given_back_as_it_is(base, photos, tmp_path):
    asked = {"default": tmp_path / "toy.safetensors", "token_settings": {"steps": 2}, **NAMED, **SETTINGS}
    first, again = (train_subject(base, photos, **asked) for _ in range(2))
    assert again.place.finished and again.place.out == first.place.out
    assert torch.equal(again.adapter.tokens["<toy>"], first.adapter.tokens["<toy>"])


def test_a_subject_and_a_motion_make_a_video(base, photos, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for index, picture in enumerate(pictures(4, seed=2)):
        Image.fromarray((picture.movedim(0, -1) * 255).byte().numpy()).save(folder / f"{index}.png")
    toy = learn(base, photos, tmp_path / "toy.safetensors").adapter
    motion = train_motion(
        base, [folder], ["a toy turns"], size=(32, 32), frames=4, fps=8, out=tmp_path / "m.safetensors", steps=2
    ).adapter
    asked = {"frames": 4, "height": 32, "width": 32, "steps": 2}
    both = sample(base, "a <toy> turns", [toy, motion], **asked)
    assert both.shape == (4, 3, 32, 32) and both.isfinite().all()
    assert not torch.equal(both, sample(base, "a <toy> turns", [toy, motion], [1.0, 0.0], **asked))
    other = replace(toy, info=replace(toy.info, base_fingerprint="another"))
    with pytest.raises(ValueError, match="another base"):
        sample(base, "a <toy> turns", [other], **asked)
