"""The toy world's exact metrics: on renders, where the truth is known, they order good above bad."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dreamvideo.nano import fidelity, world

MUSHROOM = world.HELD_OUT_SUBJECTS["mushroom"]
SCENE = world.Scene(MUSHROOM, "circling", "on the road", texture=3, tilt=0.1, offset=(2.0, -1.0))
FRAMES = 4


def video(scene: world.Scene = SCENE, **changes) -> Tensor:
    return world.render(replace(scene, **changes), FRAMES).frames


def subject_score(frames: Tensor, subject: world.Subject = MUSHROOM) -> float:
    return fidelity.subject_fidelity(fidelity.find(frames, subject))


def motion_score(path: world.Path, motion: str) -> float:
    return fidelity.motion_fidelity(path, world.path_of(motion, FRAMES * 2))


def path(motion: str) -> world.Path:
    return world.path_of(motion, FRAMES * 2)


def changed(path: world.Path, **changes) -> world.Path:
    return replace(path, **changes)


@pytest.mark.parametrize("name", ["mushroom", "moon", "bee"])
def test_a_render_of_the_subject_is_the_subject(name):
    subject = world.HELD_OUT_SUBJECTS[name]
    found = fidelity.find(video(subject=subject), subject)
    assert found.shape > 0.9 and found.looks > 0.85 and fidelity.subject_fidelity(found) > 0.88


def test_subjects_are_ordered_by_what_they_share():
    right = subject_score(video())
    plain = subject_score(video(subject=replace(MUSHROOM, pattern="plain")))
    recoloured = subject_score(video(subject=replace(MUSHROOM, colour="blue", second="purple")))
    another = subject_score(video(subject=world.Subject("cross", "blue")))
    same_colour = subject_score(video(subject=replace(MUSHROOM, shape="cross")))
    nothing = subject_score(video(size=0.5))
    assert right > 0.9 and right > plain + 0.05 and plain > recoloured + 0.2 and recoloured > another + 0.1
    assert right > same_colour + 0.2 and another > nothing == 0


def test_subjects_are_found_wherever_they_are_and_however_large():
    base = subject_score(video())
    assert subject_score(video(size=10.0)) == pytest.approx(base, abs=0.08)
    assert subject_score(video(offset=(-8.0, 6.0), motion="standing still")) == pytest.approx(base, abs=0.08)
    upside_down = fidelity.find(video(tilt=3.14), MUSHROOM)
    assert fidelity.subject_fidelity(upside_down) > base - 0.08
    assert upside_down.path.angle.cos().max() < -0.9


def test_noise_lowers_fidelity_step_by_step():
    noise = torch.randn(video().shape, generator=torch.Generator().manual_seed(0))
    scores = [subject_score((video() + amount * noise).clamp(0, 1)) for amount in (0.0, 0.06, 0.2)]
    assert scores == sorted(scores, reverse=True)


def test_a_found_path_is_the_rendered_one():
    found = fidelity.find(world.render(SCENE, 8).frames, MUSHROOM).path
    assert motion_score(found, "circling") > 0.9


@pytest.mark.parametrize("shape", ["circle", "square", "star"])
def test_a_turn_is_found_where_only_the_face_tells_it(shape):
    scene = replace(SCENE, subject=world.Subject(shape, "red"), motion="spinning")
    found = fidelity.find(world.render(scene, 8).frames, scene.subject).path
    assert motion_score(found, "spinning") > 0.9 > 0.5 > motion_score(found, "standing still")


@pytest.mark.parametrize("motion", ["circling", "zigzagging", "bouncing", "spinning", "moving left", "growing"])
def test_motions_are_ordered_right_reversed_still(motion):
    target = path(motion)
    still = path("standing still")
    backwards = world.Path(*(getattr(target, name).flip(0) for name in ("x", "y", "scale", "angle")))
    right, reverse, rest = (fidelity.motion_fidelity(each, target) for each in (target, backwards, still))
    assert right == 1 and 0.9 > reverse > rest + 0.2 and rest < 0.12


def test_motion_asks_neither_place_nor_size_nor_tilt():
    target = path("circling")
    moved = changed(target, x=target.x + 9, y=target.y - 4, angle=target.angle + 0.3)
    smaller = changed(target, x=target.x * 0.7, y=target.y * 0.7, scale=target.scale * 0.7)
    assert fidelity.motion_fidelity(moved, target) == pytest.approx(1, abs=1e-4)
    assert fidelity.motion_fidelity(smaller, target) == pytest.approx(1, abs=1e-4)


def test_every_part_of_a_motion_counts():
    spin = changed(path("standing still"), angle=torch.linspace(0, 6.28, FRAMES * 2))
    assert fidelity.motion_fidelity(spin, spin) == 1 and motion_score(spin, "standing still") < 0.2
    assert motion_score(path("growing"), "shrinking") < 0.7 < motion_score(path("growing"), "growing")
    weak = changed(path("circling"), x=path("circling").x * 0.5, y=path("circling").y * 0.5)
    assert 0.3 < motion_score(weak, "circling") < 1
    assert motion_score(path("standing still"), "standing still") == 1
    assert motion_score(path("moving up"), "moving left") < 0.1


def test_context_is_place_and_colour_word():
    assert fidelity.context_fidelity(video(), "on the road") == 1
    assert fidelity.context_fidelity(video(), "on the sand") == 0
    half = torch.cat([video()[:2], video(place="on the sand")[:2]])
    assert fidelity.context_fidelity(half, "on the road") == 0.5
    plain = video(subject=world.Subject("star", "yellow"))
    assert fidelity.context_fidelity(plain, "on the road", "yellow") == 1
    assert fidelity.context_fidelity(plain, "on the road", "blue") == 0.5
