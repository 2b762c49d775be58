"""What the embedded base's autoencoder learns on, how, and what it is measured by."""

from __future__ import annotations

import pytest
import torch

from dreamvideo.nano import reconstruction, scenes, world
from dreamvideo.nano.muon import Muon, orthogonal


def drawn(count: int = 8, seed: int = 0) -> torch.Tensor:
    return scenes.draw(count, torch.Generator().manual_seed(seed), 48)


def test_scenes_are_pictures_and_come_from_the_generator_alone():
    pictures = drawn()
    assert pictures.shape == (8, 3, 48, 48) and pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures, drawn()) and not torch.equal(pictures, drawn(seed=1))
    assert min(float((a - b).abs().mean()) for i, a in enumerate(pictures) for b in pictures[:i]) > 0.02


def test_scenes_have_outlines_and_patterns():
    across = (drawn(32)[..., 1:] - drawn(32)[..., :-1]).abs().amax((1, 2, 3))
    assert (across > 0.1).float().mean() > 0.9


def test_muon_brings_singular_values_to_one():
    for shape in ((6, 20), (20, 6)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert values.min() > 0.6 and values.max() < 1.3


def test_muon_learns_matrices_and_others():
    torch.manual_seed(0)
    layer, target = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)
    optimizer = Muon([layer.weight], [layer.bias], rate=0.02, adam_rate=0.02)
    pictures, losses = torch.randn(8, 3, 6, 6), []
    for step in range(60):
        optimizer.at(1 - step / 60)
        loss = (layer(pictures) - target(pictures).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


class Perfect:
    """An autoencoder that loses nothing, or the colours."""

    def __init__(self, grey: bool = False) -> None:
        self.grey = grey

    def encode(self, images):
        return type("Moments", (), {"mean": images})

    def decode(self, latents):
        return latents.mean(1, keepdim=True).expand_as(latents) if self.grey else latents


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(world, "HELD_OUT_SUBJECTS", {name: world.HELD_OUT_SUBJECTS[name] for name in ("fish", "moon")})
    monkeypatch.setattr(world, "HELD_OUT_MOTIONS", ("circling",))


def test_the_gate_lets_the_truth_pass_and_grey_pictures_not(few):
    kept, sheet = reconstruction.measure(Perfect(), captions=4)
    assert kept.mean > 0.88 and kept.motion > 0.97 and kept.passes and sheet.shape[0] == 3
    grey, _ = reconstruction.measure(Perfect(grey=True), captions=4)
    assert not grey.passes and grey.mean < 0.8 and grey.rules["colour"] < 0.5
    assert "not passed" in grey.lines()[-1]
