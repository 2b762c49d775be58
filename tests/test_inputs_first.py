"""Every input is looked at before the base, which takes a minute and gigabytes, is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import pictures
from tiny_base import UNET, write_tiny_base

from dreamvideo.base import EMBEDDED_FOLDER
from dreamvideo.commands import common
from dreamvideo.commands.cli import main
from dreamvideo.files.adapter_info import AdapterInfo
from dreamvideo.files.adapters import load_adapter, save_adapter
from dreamvideo.files.tensors import write_safetensors
from dreamvideo.media.writing import write_animation, write_png
from dreamvideo.models.adapters import AdapterConfig, build_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "base").mkdir()
    write_tiny_base(folder / "base")
    for index in range(2):
        write_png(folder / "photos" / f"{index}.png", pictures(1, index)[0])
    write_animation(folder / "clip.gif", pictures(4), 8.0)
    config = AdapterConfig.motion(condition_dim=12, hidden=4)
    info = AdapterInfo("motion", base_fingerprint="1-1-1:0.1,0.2", class_word="moving")
    save_adapter(folder / "motion.safetensors", build_adapter(config, UNET), info)
    for name, text in {"notes.txt": "no media", "prompts.txt": "a.gif|||a dog"}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def told(folder, capsys, monkeypatch):
    """What a command tells that must fail before a base is read; `{}` in its arguments is the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(common, "open_base", lambda *_, **__: pytest.fail("The base was read."))

    def run(*command):
        assert main([part.replace("{}", str(folder)) for part in command]) == 2
        return capsys.readouterr().err

    return run


BASE = ("--base", "{}/base")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--adapter", "{}/nowhere.safetensors@0.5"], "nowhere.safetensors"),
        (["--adapter", "{}/base/unet.safetensors"], "no adapter"),
        (["--adapter", "{}/motion.safetensors"], "with other weights"),
        (["--guidance-image", "{}/nowhere.png"], "nowhere.png"),
        (["--guidance-image", "{}/notes.txt"], "notes.txt"),
        (["--prior-clip", "{}/nowhere.mp4"], "nowhere.mp4"),
        (["--prior-clip", "{}/notes.txt"], "notes.txt"),
        (["--out", "{}/notes.txt/video.mp4"], "cannot be written"),
        (["--width", "20"], "nearest valid sizes"),
        (["--unet", "{}/nowhere.pth"], "nowhere.pth"),
        (["--clip", "{}/notes.txt"], "notes.txt"),
        (["--vae", "{}/base/clip.safetensors"], "not a Stable Diffusion autoencoder"),
        (["--clip", str(EMBEDDED_FOLDER / "clip.safetensors")], "text states of width"),
        (["--unet", "{}/base"], "is a folder: name the file of the UNet in it, or give the folder of a base as --base"),
    ],
)
def test_sampling_looks_at_its_inputs_first(told, more, words):
    assert words in told("sample", "a dog", *BASE, *more)


def test_sampling_looks_at_the_prompt_first(told):
    assert "<my-dog>" in told("sample", "a <my-dog> runs", *BASE)
    error = told("sample", "a dog", "--base", "{}/base/unet.safetensors")
    assert "is a file, and a base is a folder" in error and "--unet" in error


@pytest.mark.parametrize("command", ["demo", "analyze"])
@pytest.mark.parametrize(
    ("images", "video", "more", "words"),
    [
        ("nowhere", "clip.gif", [], "nowhere"),
        ("photos", "nowhere.mp4", [], "nowhere.mp4"),
        ("photos", "notes.txt", [], "notes.txt"),
        ("photos", "clip.gif", ["--placeholder", "dog"], "ordinary word"),
        ("photos", "clip.gif", ["--prompt", "a cat"], "does not name the subject"),
    ],
)
def test_own_media_are_looked_at_first(told, command, images, video, more, words):
    assert words in told(command, "--images", "{}/" + images, "--video", "{}/" + video, *BASE, *more)


def test_scoring_looks_at_videos_photographs_and_weights_first(told, folder, monkeypatch):
    monkeypatch.setattr("dreamvideo.files.tensors.TensorFile.read", lambda *_: pytest.fail("Weights were read."))
    files = ["--clip-weights", "{}/base/clip.safetensors", "--prompts", "{}/prompts.txt", "--videos", "{}"]
    assert "a.gif" in told("evaluate", *files)
    write_animation(folder / "a.gif", pictures(4), 8.0)
    assert "nowhere" in told("evaluate", *files, "--images", "{}/nowhere")
    assert "ViT-B/32" in told("evaluate", *files)
    assert "nowhere.pth does not exist" in told("evaluate", *files, "--dino-weights", "{}/nowhere.pth")


def test_a_motion_has_no_class_word_whatever_its_file_says(folder):
    info = load_adapter(folder / "motion.safetensors").info
    assert info.class_word == "" and str(info) == "motion adapter"
    subject = replace(info, placeholder="<my-dog>", class_word="dog")
    assert AdapterInfo.from_metadata(subject.to_metadata()).class_word == "dog"


def test_a_converted_folder_tells_its_size_and_what_a_pipeline_needs(tmp_path, capsys):
    from dreamvideo.models.config import UNetConfig
    from dreamvideo.models.unet import UNet

    config = UNetConfig(dim=32, dim_mult=(1,), res_blocks=1, head_dim=4, attention_levels=(True,), context_dim=8)
    write_safetensors(tmp_path / "unet.safetensors", UNet(config).state_dict(), {})
    assert main(["convert", str(tmp_path / "unet.safetensors"), str(tmp_path / "p"), "--layout", "diffusers"]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("model_index.json", "scheduler", "text_encoder", "tokenizer", "vae"))
    assert '"sample_size": 16' in (tmp_path / "p" / "unet" / "config.json").read_text()  # of 128 pixels
