"""What a video of the toy world shows, read off its pixels by rules: never by a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import world

# Distance in RGB (0..1) from which on a pixel no longer belongs to the ground.
FOREGROUND = 0.2
# Below this share of the picture nothing is taken for a subject.
SMALLEST = 0.01
TILTS = (-0.14, -0.07, 0.0, 0.07, 0.14)  # radians; scenes tilt by up to 0.15


@dataclass(frozen=True)
class Reading:
    """What was seen: names as captions use them, "" where nothing could be seen; `track` is [F, 3]: x, y, area."""

    colour: str
    shape: str
    motion: str
    place: str
    track: Tensor

    def agrees(self, scene: world.Scene) -> dict[str, bool]:
        """Which of colour, shape, motion and place are as the scene asks."""
        return {
            "colour": self.colour == scene.subject.colour,
            "shape": self.shape == scene.subject.shape,
            "motion": self.motion == scene.motion,
            "place": self.place == scene.place,
        }


def read(frames: Tensor) -> Reading:
    """Read a video [F, 3, H, W] in 0..1."""
    ground = ground_of(frames)  # [F, 3]
    mask = foreground(frames, ground)  # [F, H, W]
    track = track_of(mask)
    place = nearest(ground.median(0).values, world.PLACES)
    if bool((track[:, 2] < SMALLEST).any()):
        return Reading("", "", "", place, track)
    return Reading(colour_of(frames, mask), _shape(mask, track), _motion(track), place, track)


def ground_of(frames: Tensor) -> Tensor:
    """The median colour along the border of each frame, [F, 3]: the ground's."""
    edges = (frames[..., :3, :], frames[..., -3:, :], frames[..., :3], frames[..., -3:])
    border = torch.cat([edge.flatten(2) for edge in edges], dim=2)  # [F, 3, pixels]
    return border.median(dim=2).values


def foreground(frames: Tensor, ground: Tensor) -> Tensor:
    """Where frames [F, 3, H, W] differ clearly from their ground [F, 3]: bool [F, H, W]."""
    return (frames - ground[:, :, None, None]).square().sum(1).sqrt() > FOREGROUND


def track_of(mask: Tensor) -> Tensor:
    """Centre x, y in 0..1 and area as a share of the picture, [F, 3]."""
    height, width = mask.shape[1:]
    weight = mask.float()
    area = weight.sum((1, 2))
    y = (weight.sum(2) * torch.arange(height)).sum(1) / area.clamp(min=1)
    x = (weight.sum(1) * torch.arange(width)).sum(1) / area.clamp(min=1)
    return torch.stack([(x + 0.5) / width, (y + 0.5) / height, area / (height * width)], dim=1)


def nearest(rgb: Tensor, palette: dict[str, tuple[int, int, int]]) -> str:
    """The name of the palette's colour nearest to rgb [3]."""
    names = list(palette)
    table = torch.tensor([palette[name] for name in names], dtype=torch.float32) / 255
    return names[int((table - rgb).square().sum(1).argmin())]


def colour_of(frames: Tensor, mask: Tensor) -> str:
    """The palette's colour that most of the subject's pixels are nearest to; the dark face does not vote."""
    pixels = frames.movedim(1, -1)[mask]  # [P, 3]
    pixels = pixels[pixels.amax(1) > 0.4]
    if not len(pixels):
        return ""
    names = list(world.EVERY_COLOUR)
    table = torch.tensor([world.EVERY_COLOUR[name] for name in names], dtype=torch.float32) / 255
    votes = torch.cdist(pixels, table).argmin(1)
    return names[int(votes.bincount(minlength=len(names)).argmax())]


def _shape(mask: Tensor, track: Tensor) -> str:
    """The shape whose outline, at the subject's place and size, overlaps the subject best over all frames."""
    solid = torch.stack([filled(frame) for frame in mask])
    overlap = dict.fromkeys(world.SHAPES + world.HELD_OUT_SHAPES, 0.0)
    size = mask.shape[-1]
    for name in overlap:
        for tilt in TILTS:
            outlines = _outlines(name, tilt, track, size)
            common = (solid & outlines).sum((1, 2)).float()
            either = (solid | outlines).sum((1, 2)).float()
            overlap[name] = max(overlap[name], float((common / either.clamp(min=1)).mean()))
    return max(overlap, key=lambda name: overlap[name])


def filled(mask: Tensor) -> Tensor:
    """The mask with what it encloses from left and right and from above and below: a face's eyes are no holes."""

    def between(dim: int) -> Tensor:
        ahead = mask.int().cummax(dim).values
        behind = mask.int().flip(dim).cummax(dim).values.flip(dim)
        return (ahead & behind).bool()

    return mask | (between(0) & between(1))


def _outlines(shape: str, tilt: float, track: Tensor, size: int) -> Tensor:
    """Filled outlines of a shape with the centre and the area of each frame, [F, size, size]."""
    middle, unit = torch.zeros(1), torch.full((1,), 16.0)
    own = track_of(filled(world.outlines(shape, middle, middle, unit, tilt, size)[0] > 0.5)[None])[0]
    zoom = (track[:, 2] / own[2]).sqrt()
    x, y = (((track[:, axis] - 0.5) - (own[axis] - 0.5) * zoom) * world.SPAN for axis in (0, 1))
    drawn = world.outlines(shape, x, y, 16.0 * zoom, tilt, size) > 0.5
    return torch.stack([filled(frame) for frame in drawn])


def _motion(track: Tensor) -> str:
    """The trained world's motion that explains the track best: growth first, then net displacement, then the arc."""
    x, y, area = track.unbind(1)
    growth = float((area[-2:].mean() / area[:2].mean()).log())
    dx, dy = float(x[-1] - x[0]), float(y[-1] - y[0])
    if abs(growth) > 0.6 and math.hypot(dx, dy) < 0.2:
        return "growing" if growth > 0 else "shrinking"
    if max(abs(dx), abs(dy)) > 0.18:
        if abs(dx) > abs(dy):
            return "moving right" if dx > 0 else "moving left"
        return "moving down" if dy > 0 else "moving up"
    arc = float(torch.stack([y[0], y[-1]]).mean() - y.min())
    spread = float(torch.hypot(x - x.mean(), y - y.mean()).max())
    if arc > 0.12:
        return "jumping"
    return "standing still" if spread < 0.08 else ""


def path_agreement(track: Tensor, target: Tensor) -> float:
    """How much of a target path [F, 3] a track follows: 1 for the same path anywhere, 0 for standing still.

    1 - |track - target|^2 / |target|^2 of the centred positions, and so negative for a path of its own.
    """
    follows, wanted = (path[:, :2] - path[:, :2].mean(0) for path in (track, target))
    return float(1 - (follows - wanted).square().sum() / wanted.square().sum().clamp(min=1e-6))


def accuracy(videos: Tensor, scenes: list[world.Scene]) -> dict[str, float]:
    """The share of videos [N, F, 3, H, W] that agree with their scene, for each of colour, shape, motion and place."""
    agreements = [read(video).agrees(scene) for video, scene in zip(videos, scenes, strict=True)]
    return {name: sum(agreement[name] for agreement in agreements) / len(agreements) for name in agreements[0]}
