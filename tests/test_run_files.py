"""Run files: a file makes again what it was written of, says the same as options would, and is refused as they are."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from fakes import pictures
from tiny_base import SIDE, write_tiny_base

from dreamvideo.commands import common
from dreamvideo.commands.arguments import build_parser
from dreamvideo.commands.cli import main
from dreamvideo.commands.options import said, training_settings
from dreamvideo.defaults import EMBEDDED
from dreamvideo.files.adapter_info import AdapterInfo
from dreamvideo.files.adapters import read_info, save_adapter
from dreamvideo.files.toml import parse_toml, toml_text
from dreamvideo.media.writing import write_animation, write_png
from dreamvideo.safety.limits import LIMITS
from dreamvideo.sampling import SamplingSettings
from dreamvideo.training.data import TrainingData, TrainingItem
from dreamvideo.training.methods import MOTION
from dreamvideo.training.recipes import recipe
from dreamvideo.training.settings import TrainingSettings

SMALL = ["--steps", "2", "--lr", "0.1", "--batch", "1", "--height", str(SIDE), "--width", str(SIDE)]
SETTINGS = EMBEDDED.settings("motion", steps=7, seed=2**64 - 1, shift=2, p_text_drop=0.25)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_tiny_base(tmp_path / "base")
    write_animation(tmp_path / "clips" / "turn.gif", pictures(4), 8.0)
    for index, photo in enumerate(pictures(2)):
        write_png(tmp_path / "photos" / f"{index:02d}.png", photo)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(*command):
    return build_parser().parse_args([str(part) for part in command])


def given(**options) -> str:
    return toml_text(options)


def test_all_settings_come_back_from_a_recipe(tmp_path):
    item = TrainingItem(torch.zeros(4, 8, 2, 3), torch.ones(4, 8, 2, 3), "a dog")
    (tmp_path / "run.toml").write_text(recipe([(MOTION, SETTINGS)], TrainingData((item,), frames=8)))
    args = parsed("train", "motion", "x.mp4", "--config", tmp_path / "run.toml")
    found = {name: value for name, value in training_settings(args).items() if value is not None}
    assert TrainingSettings(**found, masked=False) == SETTINGS
    assert (args.clips, args.caption, args.frames, args.height, args.width) == (["x.mp4"], "a dog", 8, 16, 24)
    assert recipe([(replace(MOTION, name="mine"), SETTINGS)], TrainingData((item,), frames=8)) == ""


def test_an_adapter_may_tell_how_it_was_trained(tmp_path, capsys):
    tokens = {"<my-dog>": torch.ones(1, 4)}
    info = AdapterInfo("token", placeholder="<my-dog>", run=toml_text({"command": "train motion", "shift": 2}))
    save_adapter(tmp_path / "a.safetensors", None, info, tokens)
    assert read_info(tmp_path / "a.safetensors") == info
    assert parsed("train", "motion", "clips", "--config", tmp_path / "a.safetensors").shift == 2
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    assert "\n                shift = 2" in capsys.readouterr().out
    save_adapter(tmp_path / "b.safetensors", None, replace(info, run=""), tokens)  # as earlier versions
    assert "run" not in read_info(tmp_path / "b.safetensors").to_metadata()
    assert main(["train", "motion", "clips", "--config", str(tmp_path / "b.safetensors")]) == 2
    assert "does not tell how it was trained" in capsys.readouterr().err


def test_the_command_line_goes_before_the_file(folder):
    text = given(steps=5, seed=3, noisier=True, clips=["a.gif", "b.gif"], out="x.safetensors")
    (folder / "clips" / "run.toml").write_text(text)
    config = ["--config", "clips/run.toml"]
    args = parsed("train", "motion", *config)
    assert (args.steps, args.seed, args.noisier, args.out) == (5, 3, True, Path("clips/x.safetensors"))
    assert args.clips == ["clips/a.gif", "clips/b.gif"]
    for order in (["--seed", "4", *config], [*config, "--seed", "4"]):
        args = parsed("train", "motion", "c.gif", "--no-noisier", *order)
        assert (args.steps, args.seed, args.noisier, args.clips) == (5, 4, False, ["c.gif"])
    (folder / "video.toml").write_text(given(prompt="a dog", adapter=["a.safetensors@0.5", "b.safetensors"]))
    args = parsed("sample", "--config", "video.toml")
    assert args.prompt == "a dog" and args.adapter == ["a.safetensors@0.5", "b.safetensors"]
    args = parsed("sample", "a cat", "--adapter", "c", "--adapter", "d", "--config=video.toml")
    assert args.prompt == "a cat" and args.adapter == ["c", "d"]


@pytest.mark.parametrize("name", ["learning_rate", "learning-rate", "lr"])
def test_a_key_is_any_name_of_its_option(tmp_path, name):
    (tmp_path / "run.toml").write_text(f"{name} = 0.5\n")
    assert parsed("train", "motion", "x", "--config", tmp_path / "run.toml").lr == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stesp = 3", "has no option 'stesp'; did you mean steps?"),
        ("x = 3", "has no option 'x'; see dreamvideo train motion --help."),
        ("config = 'run.toml'", "no option 'config'"),
        ("no_noisier = true", "no option 'no_noisier'"),
        ("[training]\nsteps = 3", "no option 'training'"),
        ("'\\u001b[2J' = 3", "no option"),
        ('"\\u001b[2J" = 3', "no option '\\x1b[2J'"),
        ("steps = 0", "steps: '0' is not a whole number of at least 1 and at most 10,000,000."),
        ("steps = 3.5", "steps: '3.5' is not a whole number"),
        ("steps = true", "steps: it is a text or a number, not True."),
        ("steps = [3]", "steps: it is a text or a number, not a list."),
        ("steps = 2020-01-01", "steps: it is a text or a number, not a date."),
        (f"steps = {'9' * 3000}", "steps: '999"),
        (f"steps = {'9' * 5000}", "run.toml is no run file"),
        (f"seed = {2**64}", "at most 2^64 - 1"),
        ("seed = -1", "seed: '-1' is not"),
        ("lr = inf", "lr: 'inf' is not a number above 0"),
        ("lr = nan", "lr: 'nan' is not a number above 0"),
        ("fps = 1e300", "from 0.1 to 1000"),
        ("noisier = 1", "noisier: it is true or false, not 1."),
        ("restart = 'yes'", "restart: it is true or false"),
        ("method = 'x'", "method: 'x' is none of dreamvideo,"),
        ("clips = []", "clips: it is texts"),
        ("clips = [[]]", "clips: it is texts"),
        ("command = 'train subject'", "is for the command 'train subject', and this is dreamvideo train motion."),
        ("command = 3", "is for the command 3"),
        ("steps", "its TOML is damaged"),
        ("steps = 1\nsteps = 2", "its TOML is damaged"),
        ("x = " + "[" * 100_000, "no run file"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"#" * 2**21, "at most 1,048,576"),
        (b"", "is empty"),
        (None, "does not exist"),
    ],
)
def test_what_a_run_file_cannot_say_is_one_sentence(text, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "open_base", lambda *_, **__: pytest.fail("A base was loaded."))
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("run.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["train", "motion", "x.mp4", "--config", "run.toml"]) == 2
    error = capsys.readouterr().err
    assert words in error and "run.toml" in error and error.count("\n") == 1 and len(error) < 400
    assert error[:-1].isprintable()


def test_a_file_from_windows_is_read(tmp_path):
    (tmp_path / "run.toml").write_bytes("\ufeffcaption = 'a caf\u00e9'\r\nsteps = 3\r\n".encode())
    args = parsed("train", "motion", "x", "--config", tmp_path / "run.toml")
    assert (args.caption, args.steps) == ("a caf\u00e9", 3)


def test_what_is_not_given_stays_required(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("steps = 3\n")
    assert main(["train", "subject", "--config", str(tmp_path / "run.toml")]) == 2
    assert "required: IMAGES, --class-word" in capsys.readouterr().err
    assert main(["train", "motion"]) == 2
    assert "required: CLIPS" in capsys.readouterr().err
    assert main(["train", "motion", "x", "--config"]) == 2
    assert "--config" in capsys.readouterr().err


def test_toml_says_any_text_and_number():
    texts = ["", "a\nb\t\"\\'", "\x00\x7f\x1b\u202e\u2028", "\N{DOG FACE} caf\u00e9 \u200d", "x = 1 # no"]
    values = {"texts": texts, "whole": 2**64 - 1, "real": 1e-05, "small": 5e-324, "yes": True, "no": False}
    text = toml_text({**values, "none": None})
    assert parse_toml(text) == values and list(parse_toml(text)) == list(values)
    assert all(character.isprintable() or character in "\n\u200d" for character in text)
    assert parse_toml(toml_text({"name": "a\udcff"})) == {"name": "a?"}


@pytest.mark.parametrize("settings", [TrainingSettings, SamplingSettings])
def test_every_setting_is_explained_and_every_number_has_limits(settings):
    names = {field.name for field in fields(settings)}
    assert names == set(said(settings))
    numbers = {field.name for field in fields(settings) if str(field.type).startswith(("int", "float"))}
    assert numbers <= set(LIMITS)
