"""Files of gigabytes: their directory is read once, wrong ones are refused before they are read, programs never run."""

from __future__ import annotations

import pickle
import zipfile

import pytest
import torch
from encoder_files import read_clip
from fakes import CONFIG
from tiny_base import CLIP, randomised
from torch import nn

from dreamvideo.evaluation.metrics import load_embedders
from dreamvideo.files import tensors as tensor_files
from dreamvideo.files.tensors import CheckpointError, TensorFile, write_safetensors
from dreamvideo.files.unet import load_unet
from dreamvideo.models.unet import UNet


class Node(nn.Module):
    """A module of which a network's names can be made."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("A program was run.")


def scripted(state):
    """The tensors as the parameters of a TorchScript module, as OpenAI publishes its CLIP."""
    root = Node()
    for name, tensor in state.items():
        *folders, leaf = name.split(".")
        module = root
        for folder in folders:
            if folder not in dict(module.named_children()):
                module.add_module(folder, Node())
            module = dict(module.named_children())[folder]
        module.register_parameter(leaf, nn.Parameter(tensor.clone(), requires_grad=False))
    root.context_length = 77
    root.sizes = [1, 2]
    root.register_buffer("vocab_size", torch.tensor(49408))
    return torch.jit.script(root)


@pytest.fixture(scope="module")
def clip():
    from open_clip.model import CLIP as OpenClip

    return randomised(OpenClip(**CLIP)).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_directory_is_read_once_while_the_tensors_stream(tmp_path, monkeypatch, suffix):
    state = UNet(CONFIG).state_dict()
    path = tmp_path / f"unet{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        write_safetensors(path, state, {})
    monkeypatch.setattr(tensor_files, "WINDOW_LEAST", 1)
    opened, real = [], tensor_files.open_file
    monkeypatch.setattr(tensor_files, "open_file", lambda path: opened.append(path) or real(path))
    unet = load_unet(path, head_dim=CONFIG.head_dim)
    assert opened == [path]
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())


def test_a_file_that_changes_while_it_is_in_use_is_told(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(3), "b": torch.ones(3)}, path)
    file = TensorFile(path)
    torch.save({"b": torch.zeros(5), "a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="a.pth was changed while it was in use"):
        file.read("a")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        file.read("a")


def test_the_tensors_of_a_program_are_read_and_it_is_not_run(tmp_path, clip):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(scripted(clip), path)
    state, config = read_clip(path)
    assert config["embed_dim"] == CLIP["embed_dim"] and state.keys() == clip.keys()
    assert all(torch.equal(state[name], value) for name, value in clip.items())


@pytest.mark.parametrize("program", [True, False])
def test_other_code_is_refused_in_a_program_and_its_classes_elsewhere(tmp_path, program):
    name = "posix.system" if program else "__torch__.model.CLIP"
    module, leaf = name.rsplit(".", 1)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("x/data.pkl", f"\x80\x02c{module}\n{leaf}\n)\x81.".encode("latin-1"))
        if program:
            file.writestr("x/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(CheckpointError, match="carries Python code"):
        TensorFile(tmp_path / "x.pt")


def test_a_program_that_holds_itself_ends(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        # A module of which the attribute "a" is the module itself.
        file.writestr("x/data.pkl", b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.")
        file.writestr("x/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        TensorFile(tmp_path / "x.pt")


def test_another_clip_is_refused_before_it_is_read(tmp_path, clip, monkeypatch):
    torch.save(clip, tmp_path / "clip.bin")
    monkeypatch.setattr(TensorFile, "read", lambda *_: pytest.fail("A tensor was read."))
    with pytest.raises(ValueError, match="clip.bin is a CLIP with patches of 16 .*ViT-B-32.pt"):
        load_embedders(tmp_path / "clip.bin")
