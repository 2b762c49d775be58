"""Scenes of things that nobody named: what the embedded base's autoencoder learns to draw.

Outlines of every kind, in any colour and pattern, over plain and textured grounds. Nothing of the toy world is in them,
so what it holds out stays unseen. Many pictures are drawn at once, on whatever device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

THINGS = 3  # drawn over one another in a picture, at most
SIDES = 8  # of a polygon, at most
WAVES = 5  # of a smooth outline
RADIUS = (11.0, 32.0)  # of a thing, in pixels
PERIOD = (6.0, 26.0)  # of its pattern, in pixels


@dataclass(frozen=True)
class Draw:
    """Random numbers for `count` pictures at a time, all from one generator on one device."""

    generator: torch.Generator
    count: int

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def uniform(self, low: float, high: float, *extra: int) -> Tensor:
        """[count, *extra, 1, 1] between low and high."""
        drawn = torch.rand(self.count, *extra, 1, 1, generator=self.generator, device=self.device)
        return low + (high - low) * drawn

    def logarithmic(self, low: float, high: float) -> Tensor:
        """[count, 1, 1] whose logarithm is even between low's and high's."""
        return self.uniform(math.log(low), math.log(high)).exp()

    def chance(self, share: float) -> Tensor:
        """[count, 1, 1], true in this share."""
        return self.uniform(0, 1) < share

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator, device=self.device)


def draw(count: int, generator: torch.Generator, size: int) -> Tensor:
    """`count` random scenes, [count, 3, size, size] in 0..1, on the generator's device."""
    random = Draw(generator, count)
    axis = torch.arange(size, device=random.device) + 0.5 - size / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # [H, W] pixels from the middle
    picture = _ground(random, x, y)
    for index in range(THINGS):
        paint, coverage = _thing(random, x, y, anywhere=index > 0)
        shown = coverage * (1.0 if index == 0 else random.chance(0.5))
        picture = torch.lerp(picture, paint, shown[:, None])
    return picture.clamp(0, 1)


def _ground(random: Draw, x: Tensor, y: Tensor) -> Tensor:
    """One colour, or two that run into each other, under blotches of light; [N, 3, H, W]."""
    size, angle = x.shape[-1], random.uniform(0, math.tau)
    along = (x * angle.cos() + y * angle.sin()) / size + 0.5  # [N, H, W] from 0 to 1
    one, other = _colour(random), _colour(random)
    slope = torch.where(random.chance(0.2), along.clamp(0, 1), torch.zeros_like(along))
    strength = random.uniform(0, 0.12) * random.chance(0.8)
    blotches = F.interpolate(random.normal(1, 7, 7), size=(size, size), mode="bicubic", align_corners=False)
    return torch.lerp(one, other, slope[:, None]) * (1 + strength[:, None] * blotches.clamp(-2, 2))


def _thing(random: Draw, x: Tensor, y: Tensor, anywhere: bool) -> tuple[Tensor, Tensor]:
    """One thing's surface [N, 3, H, W] and where it lies, [N, H, W] in 0..1."""
    reach = x.shape[-1] / (2 if anywhere else 4)
    radius, angle = random.logarithmic(*RADIUS), random.uniform(0, math.tau)
    dx, dy = x - random.uniform(-reach, reach), y - random.uniform(-reach, reach)
    u = (dx * angle.cos() + dy * angle.sin()) / radius  # [N, H, W]
    v = (dy * angle.cos() - dx * angle.sin()) / radius
    first, second = _colour(random), _colour(random)
    skin = torch.lerp(first, second, _pattern(random, u * radius, v * radius)[:, None])
    marks = _face(random, u, v, radius) * random.chance(0.6)
    return torch.lerp(skin, _ink(random), marks[:, None]), _coverage(_outline(random, u, v) * radius)


def _colour(random: Draw) -> Tensor:
    """[N, 3, 1, 1]: any, two in three of them strong."""
    even = random.uniform(0, 1, 3)
    strong = (0.5 + 1.7 * (even - 0.5)).clamp(0.05, 0.97)
    return torch.where(random.chance(0.66)[:, None], strong, even)


def _ink(random: Draw) -> Tensor:
    """The colour of eyes and mouths, [N, 3, 1, 1]: dark as a rule."""
    return torch.where(
        random.chance(0.75)[:, None], random.uniform(0, 0.2)[:, None].expand(-1, 3, 1, 1), _colour(random)
    )


# ------------------------------------------------------------------------------------------------- outlines


def _outline(random: Draw, u: Tensor, v: Tensor) -> Tensor:
    """About how far each point lies outside a random outline of radius 1, negative inside: [N, H, W].

    A polygon or a smooth curve; in two of three cases joined with another, cut by it, or pierced by a hole.
    """
    outline = _part(random, u, v)
    angle, apart = random.uniform(0, math.tau), random.uniform(0.2, 0.9)
    scale = random.uniform(0.35, 0.9)
    du, dv = (u - apart * angle.cos()) / scale, (v - apart * angle.sin()) / scale
    other = _part(random, du, dv) * scale
    kind = random.uniform(0, 1)
    outline = torch.where(kind < 0.25, torch.minimum(outline, other), outline)
    return torch.where(kind > 0.75, torch.maximum(outline, -other), outline)


def _part(random: Draw, u: Tensor, v: Tensor) -> Tensor:
    return torch.where(random.chance(0.5), _polygon(random, u, v), _curve(random, u, v))


def _polygon(random: Draw, u: Tensor, v: Tensor) -> Tensor:
    """Between three and eight half-planes around the middle, stretched: distance to the farthest of them."""
    sides = 3 + (random.uniform(0, 1) * (SIDES - 2)).floor()  # [N, 1, 1]
    stretch = random.uniform(0.6, 1.0)
    outside = torch.full_like(u, -10.0)
    for side in range(SIDES):
        angle = (side + random.uniform(-0.3, 0.3)) * math.tau / sides
        plane = u * angle.cos() + v / stretch * angle.sin() - random.uniform(0.5, 0.9)
        outside = torch.where(side < sides, torch.maximum(outside, plane), outside)
    return outside * stretch


def _curve(random: Draw, u: Tensor, v: Tensor) -> Tensor:
    """A closed curve whose radius is a sum of a few waves of the angle."""
    rho, theta = torch.sqrt(u * u + v * v + 1e-9), torch.atan2(v, u)
    edge = random.uniform(0.7, 0.95).expand_as(u)
    slope = torch.zeros_like(u)
    rough = random.uniform(0, 1.4)
    for wave in range(2, 2 + WAVES):
        height, phase = rough * random.uniform(-0.2, 0.2) / math.sqrt(wave), wave * theta + random.uniform(0, math.tau)
        edge = edge + height * phase.cos()
        slope = slope - height * wave * phase.sin()
    edge = edge.clamp(min=0.15)
    return (rho - edge) / torch.sqrt(1 + (slope / edge).square())


def _coverage(distance_in_pixels: Tensor) -> Tensor:
    return (0.5 - distance_in_pixels).clamp(0, 1)


# ------------------------------------------------------------------------------------------------- surfaces


def _pattern(random: Draw, x: Tensor, y: Tensor) -> Tensor:
    """How much of the second colour, [N, H, W]: nothing, stripes, spots or checks, at any angle and period."""
    period, angle = random.logarithmic(*PERIOD), random.uniform(-math.pi, math.pi) * random.chance(0.5)
    a, b = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    a, b = a + period * random.uniform(0, 1), b + period * random.uniform(0, 1)
    kind, part = random.uniform(0, 1), random.uniform(0.3, 0.6)
    stripes = _coverage(_fold(b, period).abs() - part * period / 2)
    row = torch.floor(b / period + 0.5)
    da, db = _fold(a + row * period * 0.5 * random.chance(0.7), period), _fold(b, period)
    spots = _coverage(torch.sqrt(da * da + db * db + 1e-9) - part * period * 0.66)
    checks = _coverage(-(torch.sin(a * math.tau / period) * torch.sin(b * math.tau / period)) * period / 4)
    shown = torch.where(kind < 0.38, stripes, torch.where(kind < 0.72, spots, checks))
    return torch.where(kind < 0.8, shown, torch.zeros_like(shown))


def _fold(value: Tensor, period: Tensor) -> Tensor:
    """The distance to the nearest multiple of the period, with its sign."""
    return torch.remainder(value + period / 2, period) - period / 2


def _face(random: Draw, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Two eyes and a mouth of random sizes and places, [N, H, W] in 0..1."""
    apart, height = random.uniform(0.18, 0.4), random.uniform(-0.3, 0.1)
    eyes = torch.sqrt((u.abs() - apart).square() + (v - height).square() + 1e-9) - random.uniform(0.07, 0.17)
    bow, low = random.uniform(0.12, 0.3), height + random.uniform(0.1, 0.35)
    ring = (torch.sqrt(u * u + (v - low).square() + 1e-9) - bow).abs() - random.uniform(0.03, 0.08)
    mouth = torch.maximum(ring, low + 0.3 * bow - v)
    return _coverage(torch.minimum(eyes, mouth) * radius)
