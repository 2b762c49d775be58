"""What a training leaves of how it was made: a run file beside the adapter, and its recipe in the adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import pictures
from tiny_base import SIDE, write_tiny_base

from dreamvideo import defaults
from dreamvideo.commands.arguments import build_parser
from dreamvideo.commands.cli import main
from dreamvideo.defaults import EMBEDDED
from dreamvideo.files.adapters import load_adapter, read_info, save_adapter
from dreamvideo.files.toml import parse_toml
from dreamvideo.media.writing import write_animation, write_png

SMALL = ["--steps", "2", "--lr", "0.1", "--batch", "1", "--height", str(SIDE), "--width", str(SIDE)]


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


def trained(command, out: Path) -> bytes:
    assert main([*command, "--out", str(out)]) == 0
    return out.read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "motion", "clips/turn.gif", "--caption", 'a "dog"\n\\ turns \N{DOG FACE}', "--frames", "2"],
        ["train", "motion", "clips", "--caption", "a <my-motion>", "--frames", "1", "--method", "customizing_motion"],
        ["train", "subject", "photos", "--class-word", "dog", "--no-masks", "--token-lr", "0.2", "--token-steps", "1"],
        ["train", "subject", "photos/00.png", "photos/01.png", "--class-word", "dog", "--method", "textual_inversion"],
    ],
)
def test_a_run_file_makes_the_same_adapter_again_from_anywhere(folder, monkeypatch, command):
    on = [*SMALL, "--base", "base", "--device", "cpu", "--offset-noise", "0.2", "--warmup", "0", "--no-noisier"]
    if "--caption" in command and "--method" not in command:
        on += ["--p-text-drop", "0.25"]
    before = trained([*command, *on], folder / "made" / "one.safetensors")
    text = (folder / "made" / "one.toml").read_text(encoding="utf-8")
    assert str(folder) not in text  # relative paths stay so
    monkeypatch.chdir("/")
    # What a base's own settings are by then changes nothing.
    monkeypatch.setattr(defaults, "EMBEDDED", replace(EMBEDDED, frames=3, training={}))
    again = [*command[:2], "--config", str(folder / "made" / "one.toml"), "--device", "cpu"]
    assert trained(again, folder / "again.safetensors") == before
    assert parse_toml(read_info(folder / "again.safetensors").run).items() <= parse_toml(text).items()
    # An adapter tells as much as its run file, but for paths.
    media = [str(folder / path) for path in command[2:] if path.startswith(("clips", "photos"))]
    other = [*command[:2], *media, "--config", str(folder / "again.safetensors"), "--base", str(folder / "base")]
    masks = ["--no-masks"] if "--no-masks" in command else []
    assert trained([*other, *masks, "--device", "cpu"], folder / "third.safetensors") == before


def test_a_run_file_that_is_read_is_not_overwritten(folder, capsys):
    (folder / "run.toml").write_text("steps = 2\n")
    command = ["train", "motion", "clips", "--caption", "a dog", "--config", "run.toml", "--out", "run.safetensors"]
    assert main(command) == 2
    assert "run.toml is read here" in capsys.readouterr().err


def test_snapshots_tell_how_they_were_made(folder):
    command = ["train", "motion", "clips", "--caption", "a dog", "--base", "base", *SMALL, "--frames", "2"]
    trained([*command, "--snapshot-every", "1"], folder / "a.safetensors")
    first = trained([*command, "--steps", "1"], folder / "b.safetensors")
    assert (folder / "a.step-00001.safetensors").read_bytes() == first


def test_an_adapter_tells_how_it_was_trained(folder, capsys):
    command = ["train", "motion", "clips", "--caption", "a dog", "--base", "base", *SMALL, "--frames", "2"]
    trained([*command, "--shift", "2"], Path("b.safetensors"))
    loaded = load_adapter("b.safetensors")
    assert read_info("b.safetensors") == loaded.info
    assert parsed("train", "motion", "clips", "--config", "b.safetensors").shift == 2
    assert main(["inspect", "b.safetensors"]) == 0
    assert "\n                shift = 2" in capsys.readouterr().out
    save_adapter("a.safetensors", loaded.adapter, replace(loaded.info, run=""))  # as earlier versions
    assert main(["train", "motion", "clips", "--config", "a.safetensors"]) == 2
    assert "does not tell how it was trained" in capsys.readouterr().err
