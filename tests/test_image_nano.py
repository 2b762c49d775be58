"""The embedded image base's recipe."""

from dataclasses import replace

import pytest
import torch

from dreamvideo.base import IMAGE_FOLDER, open_base
from dreamvideo.encoders.loading import load_encoders
from dreamvideo.files.base import find_base
from dreamvideo.models.animatediff import ImageUNet
from dreamvideo.models.unet import UNet
from dreamvideo.nano import denoiser, image_base, package, world
from dreamvideo.nano.denoiser import Kind, Lesson
from dreamvideo.nano.package import FOLDER as WEIGHTS
from dreamvideo.nano.progress import averaged

STILL = (Lesson(1, (Kind.PICTURES,), small=True), Lesson(1, (Kind.PICTURES,)))
MOVING = (Lesson(1, (Kind.WAYS,), small=True), Lesson(2, (Kind.LATEST, Kind.VIDEOS)))


def _few_heads(monkeypatch) -> None:
    """A UNet of one level whose heads are as many as Stable Diffusion's."""
    config = replace(denoiser.CONFIG, dim_mult=(1,), attention_levels=(True,), head_dim=8)
    monkeypatch.setattr(denoiser, "CONFIG", config)
    still = replace(image_base.CONFIG, dim_mult=(1,), attention_levels=(True,))
    monkeypatch.setattr(image_base, "CONFIG", still)
    monkeypatch.setattr(image_base, "VIDEO", replace(still, motion_frames=world.FRAMES))


def _random(net, seed: int):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def test_the_image_model_begins_as_the_unets_spatial_half(monkeypatch):
    _few_heads(monkeypatch)
    unet, image = _random(UNet(denoiser.CONFIG), 1).eval(), ImageUNet(image_base.CONFIG).eval()
    image.load_state_dict(image_base.spatial_state(unet.state_dict()))
    pictures, times, text = torch.randn(2, 4, 1, 8, 8), torch.tensor([10, 900]), torch.randn(2, 5, 64)
    with torch.no_grad(), denoiser.spatial_half(unet):
        assert torch.allclose(image(pictures, times, text), unet(pictures, times, text), atol=1e-5)


@pytest.fixture
def begun(small_bank, monkeypatch):
    """A folder with a UNet's training and a small bank."""
    _few_heads(monkeypatch)
    state = _random(UNet(denoiser.CONFIG), 2).state_dict()
    torch.save({"average": {f"unet.{name}": value for name, value in state.items()}}, small_bank / "unet.pt")
    return small_bank


def test_it_trains_into_files_that_open_as_an_image_base(begun):
    encoders = load_encoders(find_base(WEIGHTS))
    start = image_base.spatial_state(averaged(begun / "unet.pt", "unet."))
    image_base.train_pictures(begun, encoders, STILL)
    still = averaged(begun / "image.pt")
    assert any(not torch.equal(start[name], still[name]) for name in start)
    image_base.train_motion_module(begun, encoders, MOVING)
    package.write_image_model(begun, begun)
    package.write_motion_module(begun, begun)
    files = {part: WEIGHTS / f"{part}.safetensors" for part in ("clip", "vae")}
    base = open_base(begun / IMAGE_FOLDER, **files, dtype=torch.float32)
    assert base.unet.config == image_base.VIDEO
    found = base.unet.state_dict()
    assert all(torch.equal(found[name], value.half().float()) for name, value in still.items())
    motion = averaged(begun / "motion_module.pt")
    assert all(torch.equal(found[f"motion.{name}"], value.half().float()) for name, value in motion.items())
    assert any(value.any() for name, value in motion.items() if "proj_out" in name)  # closed at the start


def test_a_training_that_was_stopped_goes_on_as_an_undisturbed_one(begun, monkeypatch):
    monkeypatch.setattr(denoiser, "rate_at", lambda step, lessons: 1.0)
    monkeypatch.setattr(denoiser, "SETTLING", 0)
    encoders = load_encoders(find_base(WEIGHTS))
    found = []
    for stopped in (0, 1):
        for lessons in (STILL[:stopped], STILL):
            image_base.train_pictures(begun, encoders, lessons)
        for lessons in (MOVING[:stopped], MOVING):  # on the finished image model
            image_base.train_motion_module(begun, encoders, lessons)
        found.append(averaged(begun / "image.pt") | averaged(begun / "motion_module.pt"))
        for part in ("image", "motion_module"):
            (begun / f"{part}.pt").unlink()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
