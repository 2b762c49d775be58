"""Where trainings are written: whose a name is, what goes on from what, and what is never touched."""

from __future__ import annotations

import json

import pytest
import torch

from dreamvideo.files.tensors import write_safetensors
from dreamvideo.safety import paths
from dreamvideo.safety.locks import Locked, locked
from dreamvideo.training import places, state_folder
from dreamvideo.training.places import Run, claimed
from dreamvideo.training.state import STATE_FORMAT, steps_of_state


def a_run(steps=10, **about):
    steps = {"token": 5, "identity": steps}
    return Run({"data": "dog", "learning_rate": 0.1, "base": "x", **about}, steps)


def write_state(folder, steps, stage="identity"):
    about = {"format": STATE_FORMAT, "step": steps, "run": {}}
    write_safetensors(folder / f"{stage}.safetensors", {"x": torch.zeros(2)}, {STATE_FORMAT: json.dumps(about)})


def train(folder, run, out=None, restart=False, stop_at=None):
    """A training that goes on from what it finds; returns (file's name, steps found, whether it was finished)."""
    with claimed(out, folder / "my-dog.safetensors", run, restart) as place:
        state = place.states / "identity.safetensors"
        found = steps_of_state(state) if state.exists() else 0
        if place.finished:
            return place.out.name, found, True
        write_state(place.states, stop_at or run.steps["identity"])
        if stop_at:
            raise KeyboardInterrupt
        place.out.write_text(f"{dict(run.about)} {run.steps}")
    return place.out.name, found, False


def test_another_training_never_replaces_a_finished_one(tmp_path):
    names = [train(tmp_path, a_run(data=data))[0] for data in ("dog", "other dog", "third dog")]
    assert names == ["my-dog.safetensors", "my-dog-2.safetensors", "my-dog-3.safetensors"]
    for change in ({"learning_rate": 0.2}, {"base": "y"}, {"class_word": "cat"}):
        assert train(tmp_path, a_run(**change))[1:] == (0, False)
    assert len({path.read_text() for path in tmp_path.glob("*.safetensors")}) == 6


def test_a_stopped_training_goes_on_under_its_own_name(tmp_path):
    train(tmp_path, a_run(data="first"))
    for data in ("second", "third"):
        with pytest.raises(KeyboardInterrupt, match="goes on from there"):
            train(tmp_path, a_run(data=data), stop_at=4)
    assert train(tmp_path, a_run(data="third")) == ("my-dog-3.safetensors", 4, False)
    assert train(tmp_path, a_run(data="second")) == ("my-dog-2.safetensors", 4, False)


def test_more_steps_go_on_from_a_finished_training_and_leave_it(tmp_path):
    train(tmp_path, a_run(10))
    before = (tmp_path / "my-dog.safetensors").read_text()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, a_run(30), stop_at=20)
    assert train(tmp_path, a_run(30)) == ("my-dog-2.safetensors", 20, False)
    assert train(tmp_path, a_run(30)) == ("my-dog-2.safetensors", 30, True)
    assert train(tmp_path, a_run(20)) == ("my-dog-3.safetensors", 0, False)
    assert train(tmp_path, a_run(40)) == ("my-dog-4.safetensors", 30, False)
    assert train(tmp_path, a_run(40), restart=True) == ("my-dog-5.safetensors", 0, False)
    assert (tmp_path / "my-dog.safetensors").read_text() == before


def test_a_name_that_was_asked_for_is_kept_to(tmp_path):
    out = tmp_path / "wolf.safetensors"
    for run, found in ((a_run(10), 0), (a_run(20), 10), (a_run(20), 20), (a_run(5), 0), (a_run(data="cat"), 0)):
        assert train(tmp_path, run, out) == (out.name, found, False)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, a_run(), out, stop_at=3)
    with pytest.raises(ValueError, match=r"unfinished training with learning_rate 0\.1 instead of 0\.5.*--restart"):
        train(tmp_path, a_run(learning_rate=0.5), out)
    with pytest.raises(ValueError, match="other photographs"):
        train(tmp_path, a_run(data="cat"), out)
    assert train(tmp_path, a_run(), out) == (out.name, 3, False)
    assert train(tmp_path, a_run(), out, restart=True) == (out.name, 0, False)


def test_only_what_was_written_is_deleted(tmp_path):
    states = tmp_path / "my-dog.state"
    states.mkdir()
    theirs = {"notes.safetensors": b"not yours", ".hidden.safetensors": b"nor this", "masks.txt": b"nor that"}
    for name, content in theirs.items():
        (states / name).write_bytes(content)
    out = tmp_path / "my-dog.safetensors"
    train(tmp_path, a_run(), out)
    (states / ".identity.0123abcd.part.safetensors").write_bytes(b"a killed run's")
    train(tmp_path, a_run(data="cat"), out)
    train(tmp_path, a_run(data="cat"), out, restart=True)
    state_folder.remove_states(states)
    assert {path.name: path.read_bytes() for path in states.iterdir()} == theirs
    write_safetensors(states / "token.safetensors", {"x": torch.zeros(2)}, {})  # of the user, by chance so called
    state_folder.remove_states(states)
    assert (states / "token.safetensors").exists()


def test_large_states_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "KEPT_BYTES", 10)
    train(tmp_path, a_run())
    assert [path.name for path in tmp_path.iterdir()] == ["my-dog.safetensors"]
    assert train(tmp_path, a_run(20)) == ("my-dog-2.safetensors", 0, False)


def test_a_failure_before_the_first_state_leaves_nothing(tmp_path):
    for interruption in (ValueError, KeyboardInterrupt):
        with pytest.raises(interruption), claimed(None, tmp_path / "new" / "a.safetensors", a_run(), False):
            raise interruption
    assert not list((tmp_path / "new").iterdir())


def test_what_a_kill_before_the_first_state_leaves_is_in_nobodys_way(tmp_path):
    paths.write_json(tmp_path / "my-dog.state" / "run.json", {"run": {"data": "cat"}, "steps": 3, "done": False})
    assert train(tmp_path, a_run()) == ("my-dog.safetensors", 0, False)
    paths.write_json(tmp_path / "wolf.state" / "run.json", {"run": {"data": "cat"}, "steps": 3, "done": False})
    assert train(tmp_path, a_run(), tmp_path / "wolf.safetensors") == ("wolf.safetensors", 0, False)


@pytest.mark.parametrize("record", ["", "[]", '{"run": 1}', '{"run": {}, "steps": "x", "done": true}'])
def test_a_damaged_record_is_another_training(tmp_path, record):
    train(tmp_path, a_run(), stop_at=None)
    (tmp_path / "my-dog.state" / "run.json").write_text(record)
    assert train(tmp_path, a_run(20)) == ("my-dog-2.safetensors", 0, False)


def test_names_count_up_over_anything_that_would_be_replaced(tmp_path):
    taken = (".losses.png", ".state/notes.txt", ".identity-00100.gif", ".safetensors")
    for number, suffix in enumerate(taken, start=1):
        path = tmp_path / f"my-dog{'' if number == 1 else f'-{number}'}{suffix}".replace("my-dog-4", "My-Dog-4")
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert train(tmp_path, a_run())[0] == "my-dog-5.safetensors"


def test_two_trainings_at_once_have_a_file_each(tmp_path):
    with claimed(None, tmp_path / "my-dog.safetensors", a_run(), False) as first:
        write_state(first.states, 4)
        assert train(tmp_path, a_run()) == ("my-dog-2.safetensors", 0, False)
        with pytest.raises(Locked, match="being written by process"):
            train(tmp_path, a_run(), first.out, restart=True)
        assert (first.states / "identity.safetensors").exists()
    with locked(tmp_path / "my-dog.safetensors"):
        assert train(tmp_path, a_run(30))[0] == "my-dog-3.safetensors"


@pytest.mark.parametrize("length", [243, 250, 300])
def test_names_too_long_are_told_before_the_first_step(tmp_path, length):
    out = tmp_path / f"{'d' * (length - len('.safetensors'))}.safetensors"
    with pytest.raises(ValueError, match="cannot be written"):
        train(tmp_path, a_run(), out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [".losses.csv", ".losses.png", ".safetensors", ".state/identity.safetensors"])
def test_a_folder_in_the_way_is_told_before_the_first_step(tmp_path, way):
    (tmp_path / f"wolf{way}").mkdir(parents=True)
    with pytest.raises(ValueError, match="it is a folder already"):
        train(tmp_path, a_run(), tmp_path / "wolf.safetensors")
    (tmp_path / "fox.state").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        train(tmp_path, a_run(), tmp_path / "fox.safetensors")
