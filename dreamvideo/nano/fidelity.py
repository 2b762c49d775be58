"""How true a video of the toy world is to a subject, a motion and a place: measured on pixels against renders.

Everything is a share from 0 to 1, and 1 on a render of the very thing asked for. A known subject, held out or not, is
looked for in every frame by drawing it at many places, sizes and tilts and taking the pose that agrees best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import rules, world

# Distance in RGB (0..1) at which two colours no longer agree at all; between, agreement falls linearly.
DIFFERENT = 0.5
# Poses tried in each frame: tilts all around; then around the best one, by these changes of tilt, size and place, and
# by a `FINER` part of them.
AROUND = [math.tau * k / 48 for k in range(48)]
NEAR_TILTS, NEAR_SCALES, NEAR_OFFSETS = (-0.1, 0.0, 0.1), (-0.12, 0.0, 0.12), (-2.0, 0.0, 2.0)
FINER = 0.35
# By how much more a subject that has turned right around since the frame before must agree: its outline may be the same
# at several tilts, and a blurred face tells them apart badly.
TURNED = 0.3
# What a motion may stray for nothing, in subjects' radii: about a pixel.
SLACK = 0.07


@dataclass(frozen=True)
class Found:
    """A subject as it was found in a video.

    path: its centre, scale (1 = a radius of 16 64ths of the picture) and angle in each frame.
    shape: mean over the frames of its outline's overlap (intersection over union) with what stands out from the ground.
    looks: mean agreement of colours within that overlap: 1 for equal ones, 0 from `DIFFERENT` on.
    """

    path: world.Path
    shape: float
    looks: float


@dataclass(frozen=True)
class Poses:
    """Hypotheses about where a subject is, [P] each: x, y from the middle and radius in 64ths of the picture."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor

    def __getitem__(self, index: int | slice | Tensor) -> Poses:
        return Poses(self.x[index], self.y[index], self.radius[index], self.angle[index])


# What a frame in which nothing stands out from the ground holds: pose, overlap and looks.
NOWHERE = (Poses(*torch.tensor([0.0, 0.0, 1.0, 0.0]).unbind()), 0.0, 0.0)


def find(frames: Tensor, subject: world.Subject) -> Found:
    """Look for a known subject in a video [F, 3, H, W] in 0..1."""
    ground = rules.ground_of(frames)  # [F, 3]
    masks = rules.foreground(frames, ground)  # [F, H, W]
    tracks, solids = rules.track_of(masks), [rules.filled(mask) for mask in masks]
    angles = torch.tensor(AROUND)
    poses = [_centred(subject, track, angles, frames.shape[-1]) for track in tracks]
    agreement = [_agreement(*each, subject) for each in zip(frames, solids, poses, strict=True)]
    turns = _steadiest(torch.stack([overlap * (1 + looks) / 2 for overlap, looks in agreement]), angles)
    best = [
        _refined(frame, solid, pose[turn], subject) if track[2] >= rules.SMALLEST else NOWHERE
        for frame, solid, pose, turn, track in zip(frames, solids, poses, turns, tracks, strict=True)
    ]
    x, y, radius, angle = (
        torch.stack([getattr(pose, name) for pose, _, _ in best]) for name in ("x", "y", "radius", "angle")
    )
    path = world.Path(x, y, radius / 16, _unwrapped(angle))
    overlap, looks = (sum(each) / len(best) for each in ([each[1] for each in best], [each[2] for each in best]))
    return Found(path, overlap, looks)


def subject_fidelity(found: Found) -> float:
    """How much of a subject is there: the overlap of its outline, half of it for the agreement of colours and pattern.

    shape * (1 + looks) / 2: an outline filled with other colours is half a subject, colours without the outline less.
    """
    return found.shape * (1 + found.looks) / 2


def motion_fidelity(path: world.Path, target: world.Path) -> float:
    """How truly a path follows a target's trajectory, scale and rotation; 1 for the same anywhere, at any size or tilt.

    Both are aligned: mean place, mean logarithm of scale and mean angle are taken out. What is left in each frame is a
    point (x, y, log scale, angle), in subject's radii, e-folds and radians. The mean of two parts, each 1 minus squared
    distances over the sum of both paths' squares, and at least 0: the course, compared frame by frame, and the trace,
    each point compared with the nearest of the other path. A reversed motion keeps the trace and loses the course.
    """
    a, b = _states(path), _states(target)
    scale = a.square().sum() + b.square().sum() + len(b) * SLACK**2
    course = 1 - (a - b).square().sum() / scale
    apart = torch.cdist(a, b).square()  # [F, F]
    trace = 1 - (apart.amin(0).sum() + apart.amin(1).sum()) / 2 / scale
    # Standing at the target's middle is half as far from it as its own extent says; so a still path earns nothing.
    trace = 2 * trace - 1
    return float((course.clamp(0, 1) + trace.clamp(0, 1)) / 2)


def context_fidelity(frames: Tensor, place: str, colour: str = "") -> float:
    """The share of what the prompt says beside subject and motion that is to be seen: mean of the answers, 0 to 1.

    One answer is the share of frames [F, 3, H, W] whose ground is nearest to the place's colour among all places;
    another, where the prompt names a colour, whether most of the subject is nearest to it (0 or 1).
    """
    ground = rules.ground_of(frames)
    places = [rules.nearest(each, world.PLACES) == place for each in ground]
    answers = [sum(places) / len(places)]
    if colour:
        answers.append(float(rules.colour_of(frames, rules.foreground(frames, ground)) == colour))
    return sum(answers) / len(answers)


def _steadiest(agreement: Tensor, angles: Tensor) -> list[int]:
    """Which of the angles [P] in each frame, so that agreement [F, P] less the cost of turning is most in all."""
    cost = TURNED * (1 - (angles[:, None] - angles).cos()) / 2  # [P, P]
    total, before = agreement[0], []
    for frame in agreement[1:]:
        best = (total[:, None] - cost).max(0)
        before.append(best.indices)
        total = frame + best.values
    turns = [int(total.argmax())]
    for indices in reversed(before):
        turns.append(int(indices[turns[-1]]))
    return turns[::-1]


def _refined(frame: Tensor, solid: Tensor, pose: Poses, subject: world.Subject) -> tuple[Poses, float, float]:
    """The pose around this one that agrees best with a frame [3, H, W], and its overlap and its looks."""
    for step in (1.0, FINER):
        poses = _nearby(pose, step)
        overlap, looks = _agreement(frame, solid, poses, subject)
        best = int((overlap * (1 + looks)).argmax())
        pose = poses[best]
    return pose, float(overlap[best]), float(looks[best])


def _centred(subject: world.Subject, track: Tensor, angles: Tensor, size: int) -> Poses:
    """The subject at each angle [P] with the centre and the area of the thing that was seen (track [3])."""
    rest, unit = torch.zeros_like(angles), torch.full_like(angles, 16.0)
    _, coverage = world.portraits(subject, rest, rest, unit, angles, size)
    own = rules.track_of(coverage > 0.5)  # [P, 3]
    zoom = (track[2].clamp(min=1e-4) / own[:, 2]).sqrt()
    x, y = (((track[axis] - 0.5) - (own[:, axis] - 0.5) * zoom) * world.SPAN for axis in (0, 1))
    return Poses(x, y, unit * zoom, angles)


def _nearby(pose: Poses, step: float) -> Poses:
    """The pose and its neighbours in place, size and tilt, this part of a whole step away."""
    options = (torch.tensor(each) for each in (NEAR_OFFSETS, NEAR_OFFSETS, NEAR_SCALES, NEAR_TILTS))
    dx, dy, scale, tilt = (step * torch.cartesian_prod(*options)).unbind(1)
    return Poses(pose.x + dx, pose.y + dy, pose.radius * (1 + scale), pose.angle + tilt)


def _agreement(frame: Tensor, solid: Tensor, poses: Poses, subject: world.Subject) -> tuple[Tensor, Tensor]:
    """Of each pose: overlap of outlines, and agreement of colours within the overlap; each [P]."""
    paint, coverage = world.portraits(subject, poses.x, poses.y, poses.radius, poses.angle, frame.shape[-1])
    inside = coverage > 0.5  # [P, H, W]
    common = (inside & solid).float()
    overlap = common.sum((1, 2)) / (inside | solid).float().sum((1, 2)).clamp(min=1)
    alike = (1 - (paint - frame).square().sum(1).sqrt() / DIFFERENT).clamp(min=0)  # [P, H, W]
    looks = (alike * common).sum((1, 2)) / common.sum((1, 2)).clamp(min=1)
    return overlap, looks


def _states(path: world.Path) -> Tensor:
    """Aligned points (x, y, log scale, angle) of a path, [F, 4]."""
    radius = 16 * path.scale.clamp(min=1e-3).log().mean().exp()
    points = torch.stack([path.x / radius, path.y / radius, path.scale.clamp(min=1e-3).log(), path.angle], dim=1)
    return points - points.mean(0)


def _unwrapped(angle: Tensor) -> Tensor:
    """Angles [F] without jumps of a whole turn."""
    steps = torch.remainder(angle.diff() + math.pi, math.tau) - math.pi
    return torch.cat([angle[:1], angle[:1] + steps.cumsum(0)])
