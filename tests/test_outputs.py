"""What commands write, decided before anything is loaded: never what they read, never a name that cannot be."""

from __future__ import annotations

import os

import pytest
from fakes import pictures
from tiny_base import write_tiny_base

from dreamvideo.commands import common, sample
from dreamvideo.commands.arguments import build_parser
from dreamvideo.commands.cli import main
from dreamvideo.commands.common import file_name
from dreamvideo.media.writing import write_animation, write_png


@pytest.fixture
def media(tmp_path, monkeypatch):
    """A clip, photographs and a base; loading any base fails the test."""
    write_animation(tmp_path / "clip.gif", pictures(3), 8.0)
    write_png(tmp_path / "photos" / "changes.png", pictures(1)[0])
    write_png(tmp_path / "photos" / "dog.losses.png", pictures(1)[0])
    os.symlink(tmp_path / "clip.gif", tmp_path / "link.gif")
    os.link(tmp_path / "clip.gif", tmp_path / "hard.gif")
    monkeypatch.setattr(common, "open_base", lambda *_, **__: pytest.fail("Loaded before the output was looked at."))
    return tmp_path


def told(capsys, *command):
    assert main([str(part) for part in command]) == 2
    return capsys.readouterr().err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_inputs_are_never_outputs(media, capsys):
    base = write_tiny_base(media / "base")
    before = contents(media)
    for out in ("clip.gif", "link.gif", "hard.gif", "photos/../clip.gif"):
        for option in ("--prior-clip", "--guidance-image"):
            assert "is read here" in told(capsys, "sample", "a dog", option, media / "clip.gif", "--out", media / out)
    guide = ["--guidance-image", media / "photos" / "changes.png"]
    assert "is read here" in told(capsys, "sample", "a dog", *guide, "--out", media / "photos")
    unet = base / "unet.safetensors"
    train = ["train", "subject", media / "photos", "--class-word", "dog"]
    assert "is read here" in told(capsys, *train, "--base", base, "--out", unet)
    assert "dog.losses.png is read here" in told(capsys, *train, "--out", media / "photos" / "dog.safetensors")
    assert "is read here" in told(capsys, "convert", base, unet)
    own = ["--images", media / "photos", "--video", media / "clip.gif"]
    assert "changes.png is read here" in told(capsys, "analyze", *own, "--out", media / "photos")
    assert contents(media) == before


def test_names_too_long_are_told_before_the_base_is_loaded(media, capsys):
    name = "d" * 231 + ".safetensors"  # 243 bytes: it could be written itself, but nothing beside it
    train = ["train", "subject", media / "photos", "--class-word", "dog"]
    assert "takes 243 bytes; give one of at most 200" in told(capsys, *train, "--out", media / name)
    assert "at most 200" in told(capsys, "sample", "a dog", "--out", media / ("d" * 300 + ".mp4"))
    assert not list(media.glob("d*"))


def test_default_names_tell_prompts_adapters_and_strengths_and_fit(tmp_path):
    def name(*command):
        return sample._default_name(build_parser().parse_args(["sample", *command])).name

    assert name("a <my-dog> runs", "--seed", "3") == "a-my-dog-runs-3.mp4"
    strengths = [name("a dog", "--adapter", f"x/dance.safetensors@{strength}") for strength in ("0.5", "1", "1.5")]
    assert strengths == ["a-dog-dance@0.5-0.mp4", "a-dog-dance-0.mp4", "a-dog-dance@1.5-0.mp4"]
    assert file_name("\N{DOG FACE}") == "dog-face" != file_name("\N{CAT FACE}")
    assert file_name("...") == "untitled"
    long = name("\U00020000" * 300, *["--adapter", "\u72d7" * 80] * 3, "--seed", str(2**64 - 1))
    assert len(long.encode()) < 190  # with room for a number: 200 is the most that we write
