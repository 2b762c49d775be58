"""The embedded base: its world is what it says, and its weights do what they are for."""

from __future__ import annotations

import pytest
import torch

from dreamvideo.encoders.loading import load_encoders
from dreamvideo.files.base import find_base
from dreamvideo.files.unet import load_unet
from dreamvideo.nano import autoencoder, denoiser, package, rules, world
from dreamvideo.nano.command import autoencoder_of, sampler

WEIGHTS = package.FOLDER


def test_a_scene_renders_alike_every_time():
    scene = world.held_out_scenes(1)[0]
    first, second = world.render(scene), world.render(scene)
    assert torch.equal(first.frames, second.frames)
    assert first.frames.shape == (world.FRAMES, 3, world.SIZE, world.SIZE)
    assert first.frames.min() >= 0 and first.frames.max() <= 1


def test_training_never_meets_what_is_held_out():
    generator = torch.Generator().manual_seed(0)
    trained = [world.training_scene(generator) for _ in range(400)]
    captions = {scene.caption for scene in world.held_out_scenes(100)}
    assert len(captions) == 100
    assert not captions & {scene.caption for scene in trained}
    assert not {scene.subject.shape for scene in trained} & set(world.HELD_OUT_SHAPES)
    assert not {scene.subject.colour for scene in trained} & set(world.HELD_OUT_COLOURS)
    assert not {scene.motion for scene in trained} & set(world.HELD_OUT_MOTIONS)


def test_the_rules_read_what_was_rendered():
    scenes = world.held_out_scenes(40, seed=5)
    seen = rules.accuracy(torch.stack([world.render(scene).frames for scene in scenes]), scenes)
    assert seen["colour"] == seen["motion"] == seen["place"] == 1
    assert seen["shape"] >= 0.95


def test_the_rules_tell_a_wrong_video():
    scene = world.Scene(world.Subject("star", "red"), "moving left", "on the sand")
    reading = rules.read(world.render(scene).frames.flip(0))
    assert reading.agrees(scene) == {"colour": True, "shape": True, "motion": False, "place": True}
    empty = rules.read(world.render(scene).frames * 0 + 0.5)
    assert empty.colour == empty.shape == empty.motion == ""


@pytest.mark.parametrize("motion", world.MOTIONS + world.HELD_OUT_MOTIONS)
def test_a_path_agrees_with_itself_and_not_with_its_reverse(motion):
    track = rules.read(world.render(world.Scene(world.Subject("circle", "red"), motion, "on the road")).frames).track
    assert rules.path_agreement(track, track) == pytest.approx(1)
    if motion in ("moving left", "moving up", "circling", "zigzagging"):
        assert rules.path_agreement(track.flip(0), track) < 0.5


def test_an_unknown_name_is_told():
    with pytest.raises(ValueError, match="no motion 'flying'"):
        world.path_of("flying")


def test_normalising_the_autoencoder_changes_no_picture():
    torch.manual_seed(0)
    model = autoencoder.build(autoencoder.EPSILON).eval()
    pictures = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh one leaves a latent's channel empty
            parameter.add_(0.02 * torch.randn_like(parameter))
        before = model.decode(model.encode(pictures * 2 - 1).latent_dist.mean).sample
        autoencoder.normalise(model, pictures)
        latents = model.encode(pictures * 2 - 1).latent_dist.mean
        after = model.decode(latents).sample
    assert torch.allclose(before, after, atol=1e-3)
    assert torch.allclose((latents * autoencoder.SCALE).std((0, 2, 3)), torch.ones(4), atol=1e-3)


def test_timesteps_lean_to_the_noisy_end_in_every_step():
    drawn = torch.stack([denoiser.timesteps(8, torch.Generator().manual_seed(seed)) for seed in range(500)])
    assert drawn.min() >= 0 and drawn.max() <= 999
    assert abs(float(drawn.float().mean()) - 2000 / 3) < 10
    assert drawn.amin(1).max() <= 354 and drawn.amax(1).min() >= 935  # the first and the last of eight ranges
    evenly = denoiser.timesteps(8, torch.Generator().manual_seed(0), noisy=False)
    assert (evenly.sort().values // 125).tolist() == list(range(8))


def test_the_blocks_that_the_unet_reads_train_along(tmp_path):
    torch.save({"latents": torch.randn(4, world.FRAMES, 4, 8, 8)}, tmp_path / "bank.pt")
    encoders = load_encoders(find_base(WEIGHTS))
    before = {name: value.clone() for name, value in encoders.text.clip.state_dict().items()}
    torch.save({"average": before}, tmp_path / "clip.pt")
    denoiser.train(tmp_path, encoders, steps=1)
    joined = package.joined_clip(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], joined[name])}
    read = ("transformer.resblocks.0.", "transformer.resblocks.1.", "ln_final.")  # of three blocks
    assert changed and all(name.startswith(read) for name in changed)


def test_finishing_the_autoencoder_changes_no_picture():
    model = autoencoder.build(autoencoder.EPSILON).eval()
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    with torch.no_grad():
        for parameter in model.parameters():  # no branch at zero
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        before = model.decode(model.encode(pictures).latent_dist.mean).sample
        autoencoder.finish(model)
        usual = autoencoder.build().eval()
        usual.load_state_dict(model.state_dict())
        after = usual.decode(usual.encode(pictures).latent_dist.mean).sample
    torch.testing.assert_close(before, after, atol=1e-3, rtol=1e-3)


def test_an_untrained_autoencoder_keeps_colours():
    flat = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.3, 0.8]])[..., None, None].expand(-1, -1, 32, 32) * 2 - 1
    model = autoencoder.build(autoencoder.EPSILON).eval()
    with torch.no_grad():
        kept = model.decode(model.encode(flat).latent_dist.mean).sample
    assert kept.std((2, 3)).max() < 0.1
    assert torch.equal(kept.mean((2, 3)).argsort(1), flat.mean((2, 3)).argsort(1))


def test_training_the_autoencoder_resumes_to_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "CUTTING", 16)
    for folder, parts in (("whole", (3,)), ("stopped", (1, 3))):
        (tmp_path / folder).mkdir()
        for until in parts:
            monkeypatch.setattr(autoencoder, "_decayed", lambda part: 1.0)
            autoencoder.train(tmp_path / folder, until, batch=2)
    whole, stopped = (package.average(tmp_path / folder, "autoencoder") for folder in ("whole", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    package.write_autoencoder(tmp_path / "whole", tmp_path)
    kept = autoencoder_of(tmp_path)
    assert kept.decode(kept.encode(torch.rand(1, 3, 16, 16)).mean).isfinite().all()


def test_the_weights_fit_into_twenty_megabytes():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 20_000_000


def test_the_autoencoder_keeps_what_captions_name():
    vae = load_encoders(find_base(WEIGHTS)).vae
    seen = package.measure_autoencoder(vae, 20)
    assert min(seen["motion"], seen["place"]) == 1
    assert seen["colour"] >= 0.95 and seen["shape"] >= 0.85


def test_the_base_follows_captions():
    base = find_base(WEIGHTS)
    unet, encoders = load_unet(base.unet, dtype=torch.float32), load_encoders(base)
    assert unet.config == denoiser.CONFIG
    seen, _ = package.measure_base(sampler(unet, encoders, steps=20), count=8, batch=8)
    assert min(seen.values()) >= 0.85  # by chance one in nine, ten, eight and five
