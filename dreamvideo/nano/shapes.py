"""The outlines of the toy world's shapes, by their signed distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
HELD_OUT_SHAPES = ("flower", "moon", "house", "mushroom", "fish", "arrow")
BLOB = "blob"  # what captions call an outline that has no name: there are as many as numbers


def signed_distance(shape: str, u: Tensor, v: Tensor, variant: int = 0) -> Tensor:
    """Roughly how far (u, v) lies outside the shape, negative inside; the shape's radius is 1 and v points down.

    variant: which blob; nothing to the others.
    """
    rho, theta = torch.sqrt(u * u + v * v + 1e-9), torch.atan2(u, -v)
    if shape == BLOB:
        return 0.7 * (rho - _blob_radius(theta, variant))
    if shape == "circle":
        return rho - 0.95
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.84
    if shape == "triangle":
        return torch.maximum(v, 0.88 * u.abs() - 0.475 * (v + 0.15)) - 0.62
    if shape == "star":
        sector = math.pi / 5
        folded = (torch.remainder(theta + sector, 2 * sector) - sector).abs()
        return _edge(rho * torch.cos(folded), rho * torch.sin(folded), outer=1.15, inner=0.5, sector=sector)
    if shape == "cross":
        return torch.minimum(_box(u, v, 0.36, 1.0), _box(u, v, 1.0, 0.36))
    if shape == "heart":
        lobe = torch.sqrt((u.abs() - 0.45) ** 2 + (v + 0.35) ** 2) - 0.52
        tip = torch.maximum(0.72 * u.abs() + 0.69 * v - 0.6, -v - 0.42)
        return torch.minimum(lobe, torch.maximum(tip, u.abs() - 0.9))
    if shape == "flower":
        return rho - (0.8 + 0.2 * torch.cos(6 * theta))
    if shape == "moon":
        return torch.maximum(rho - 1.0, 0.78 - torch.sqrt((u - 0.55) ** 2 + (v + 0.15) ** 2))
    if shape == "house":
        roof = torch.maximum(0.7 * u.abs() - 0.71 * (v + 1.05), v + 0.05)
        return torch.minimum(_box(u, v - 0.45, 0.68, 0.5), roof)
    if shape == "mushroom":
        cap = torch.maximum(torch.sqrt(u * u + (1.15 * (v - 0.05)) ** 2) - 1.05, v - 0.1)
        return torch.minimum(cap, _box(u, v - 0.5, 0.36, 0.5))
    if shape == "fish":
        body = torch.sqrt((u + 0.2) ** 2 + (1.35 * v) ** 2) - 0.85
        tail = torch.maximum(0.71 * v.abs() - 0.71 * (u - 0.3), u - 1.1)
        return torch.minimum(body, tail)
    if shape == "arrow":
        head = torch.maximum(0.71 * u.abs() - 0.71 * (v + 1.1), v - 0.05)
        return torch.minimum(_box(u, v - 0.4, 0.38, 0.65), head)
    raise ValueError(f"There is no shape '{shape}' in the toy world; it knows {', '.join(SHAPES + HELD_OUT_SHAPES)}.")


def _blob_radius(theta: Tensor, variant: int) -> Tensor:
    """How far a blob's outline lies from its middle in the directions theta: at most 1, lobed, dented or cornered."""
    generator = torch.Generator().manual_seed(variant)
    height, phase = torch.rand(2, 5, generator=generator).tolist()
    cornered = torch.rand(5, generator=generator).tolist()
    turns = torch.arange(721) * (2 * math.pi / 720)

    def wave(angle: Tensor) -> Tensor:
        total = torch.zeros_like(angle)
        for index in range(5):
            swing = torch.cos((index + 1) * angle + 2 * math.pi * phase[index])
            total = total + height[index] / (1 + 0.5 * index) * (swing.abs() if cornered[index] < 0.4 else swing)
        return total

    every = wave(turns)
    low, high = float(every.min()), float(every.max())
    waist = 0.45 + 0.35 * height[0]
    return waist + (1 - waist) * (wave(theta) - low) / (high - low)


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _edge(x: Tensor, y: Tensor, outer: float, inner: float, sector: float) -> Tensor:
    """Distance to the line from a star's tip (outer, 0) to its notch (inner at the sector's angle)."""
    notch = (inner * math.cos(sector), inner * math.sin(sector))
    along = (notch[0] - outer, notch[1])
    length = math.hypot(*along)
    return ((x - outer) * along[1] - y * along[0]) / length
