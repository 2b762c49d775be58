"""The toy world: shapes with a face, colours and a pattern, moving over a textured ground, captioned in plain English.

Everything is rendered by code from a few numbers, so the truth of every picture is known. Some subjects and some
motions are held out of the base's training: they are what adapters are to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .paths import FRAMES as FRAMES
from .paths import HELD_OUT_MOTIONS as HELD_OUT_MOTIONS
from .paths import MOTIONS as MOTIONS
from .paths import WANDERING as WANDERING
from .paths import Path as Path
from .paths import path_of as path_of
from .shapes import BLOB as BLOB
from .shapes import HELD_OUT_SHAPES as HELD_OUT_SHAPES
from .shapes import SHAPES as SHAPES
from .shapes import signed_distance

SIZE = 128  # pixels a side; 64 are too few for an autoencoder to keep a pattern
SPAN = 64  # in whose parts of a picture places and sizes are given, however many pixels it has

COLOURS = {
    "red": (220, 40, 40),
    "green": (45, 165, 60),
    "blue": (45, 80, 220),
    "yellow": (245, 215, 50),
    "purple": (145, 60, 190),
    "orange": (245, 135, 35),
    "white": (245, 245, 245),
}
HELD_OUT_COLOURS = {"pink": (250, 120, 180), "cyan": (60, 205, 225)}
EVERY_COLOUR = COLOURS | HELD_OUT_COLOURS

PLACES = {
    "in the night": (24, 28, 62),
    "on the sand": (206, 186, 148),
    "on the grass": (138, 162, 108),
    "on the water": (118, 162, 184),
    "on the road": (92, 92, 98),
}

PATTERNS = ("plain", "striped", "spotted")

BESIDE = 0.75  # of their size and way, where there are two

CLASS_WORD = "toy"  # what captions call a subject whose looks they leave open


@dataclass(frozen=True)
class Subject:
    """One toy: the looks that an identity adapter has to learn. A colour is a name or, having none, "#rrggbb"."""

    shape: str
    colour: str
    second: str = "white"  # the pattern's colour; unused when plain
    pattern: str = "plain"
    variant: int = 0  # which blob

    @property
    def words(self) -> str:
        """How a caption names it: "red star", "red and white striped star"; without colours where they have no name."""
        if self.colour.startswith("#"):
            return self.shape if self.pattern == "plain" else f"{self.pattern} {self.shape}"
        if self.pattern == "plain":
            return f"{self.colour} {self.shape}"
        return f"{self.colour} and {self.second} {self.pattern} {self.shape}"


HELD_OUT_SUBJECTS = {
    "mushroom": Subject("mushroom", "red", "white", "spotted"),
    "flower": Subject("flower", "pink", "yellow", "spotted"),
    "moon": Subject("moon", "cyan", "pink", "striped"),
    "house": Subject("house", "pink", "blue", "striped"),
    "bee": Subject("circle", "cyan", "purple", "striped"),
    "tent": Subject("triangle", "cyan", "red", "striped"),
    "fish": Subject("fish", "pink"),
    "arrow": Subject("arrow", "cyan"),
}


@dataclass(frozen=True)
class Scene:
    """What is to be seen: a subject that moves somewhere. `jitter` holds size, offset (x, y), tilt and texture seed."""

    subject: Subject
    motion: str
    place: str
    size: float = 14.5  # radius in 64ths of the picture, as the offset is
    offset: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0  # radians
    texture: int = 0
    companion: Subject | None = None  # a second one, to the right; both are smaller then and move alike
    wander: int = 0  # which of the ways that have no name, where the motion is WANDERING

    @property
    def words(self) -> str:
        """How a caption names who is to be seen."""
        return self.subject.words if self.companion is None else f"{self.subject.words} and a {self.companion.words}"

    @property
    def caption(self) -> str:
        return f"a {self.words} {self.motion} {self.place}"


# ------------------------------------------------------------------------------------------------- rendering


@dataclass(frozen=True)
class Canvas:
    """A render: frames and, for measuring and masked training, where the subject is."""

    frames: Tensor  # [F, 3, H, W] in 0..1
    mask: Tensor  # [F, H, W] in 0..1
    caption: str


def render(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> Canvas:
    """Draw a scene: [F, 3, size, size] in 0..1 and the subject's mask."""
    path = path_of(scene.motion, frames, scene.wander)
    picture = _ground(scene.place, scene.texture, size).expand(frames, -1, -1, -1)  # [F, 3, H, W]
    anywhere = torch.zeros(frames, size, size)
    actors = [(scene.subject, 0.0, 1.0)]
    if scene.companion is not None:
        actors = [(scene.subject, -SPAN / 4, BESIDE), (scene.companion, SPAN / 4, BESIDE)]
    for subject, aside, part in actors:
        x, y = part * path.x + scene.offset[0] + aside, part * path.y + scene.offset[1]
        paint, coverage = portraits(subject, x, y, part * scene.size * path.scale, path.angle + scene.tilt, size)
        picture = picture * (1 - coverage[:, None]) + paint * coverage[:, None]
        anywhere = torch.maximum(anywhere, coverage)
    return Canvas(picture.clamp(0, 1), anywhere, scene.caption)


def portraits(
    subject: Subject, x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, size: int = SIZE
) -> tuple[Tensor, Tensor]:
    """A subject's surface [P, 3, size, size] in P poses, and where in the picture it lies: [P, size, size] in 0..1.

    x, y from the middle and radius in 64ths of the picture, angle in radians, each [P].
    """
    u, v = _local(x, y, radius, angle, size)
    coverage = _outline(subject.shape, u, v, radius, size, subject.variant)
    return _paint(subject, u, v, radius[:, None, None] * size / SPAN), coverage


def outlines(shape: str, x: Tensor, y: Tensor, radius: Tensor, tilt: float, size: int = SIZE) -> Tensor:
    """Where a shape would be: x, y from the middle and radius, each [F] in 64ths of the picture -> [F, size, size]."""
    u, v = _local(x, y, radius, torch.full_like(x, tilt), size)
    return _outline(shape, u, v, radius, size)


def _local(x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each pixel in the subject's own coordinates u, v [F, size, size]: 1 is its radius."""
    axis = (torch.arange(size) + 0.5) * SPAN / size - SPAN / 2
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    dx, dy = columns - x[:, None, None], rows - y[:, None, None]
    cos, sin, unit = (part[:, None, None] for part in (angle.cos(), angle.sin(), radius))
    return (dx * cos + dy * sin) / unit, (dy * cos - dx * sin) / unit


def _outline(shape: str, u: Tensor, v: Tensor, radius: Tensor, size: int, variant: int = 0) -> Tensor:
    return _coverage(signed_distance(shape, u, v, variant) * radius[:, None, None] * size / SPAN)


def _coverage(distance_in_pixels: Tensor) -> Tensor:
    return (0.5 - distance_in_pixels).clamp(0, 1)


def _rgb(colour: str) -> Tensor:
    numbers = bytes.fromhex(colour[1:]) if colour.startswith("#") else EVERY_COLOUR[colour]
    return torch.tensor(list(numbers), dtype=torch.float32) / 255


def _paint(subject: Subject, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """The subject's surface: colour, pattern and face, [F, 3, H, W]."""
    second = torch.zeros_like(u)
    if subject.pattern == "striped":
        second = _coverage((torch.remainder(v + 0.17, 0.68) - 0.34).abs().sub(0.14) * radius)
    elif subject.pattern == "spotted":
        row = torch.floor((v + 0.35) / 0.7)
        du = torch.remainder(u + 0.35 * row, 0.7) - 0.35
        dv = torch.remainder(v + 0.35, 0.7) - 0.35
        second = _coverage((torch.sqrt(du * du + dv * dv) - 0.22) * radius)
    first, other = _rgb(subject.colour)[:, None, None], _rgb(subject.second)[:, None, None]
    skin = first * (1 - second[:, None]) + other * second[:, None]
    eye = torch.sqrt((u.abs() - 0.27) ** 2 + (v + 0.08) ** 2) - 0.13
    mouth = (torch.sqrt(u * u + (v - 0.12) ** 2) - 0.2).abs() - 0.055
    face = _coverage(torch.minimum(eye, torch.maximum(mouth, 0.2 - v)) * radius)
    return skin * (1 - face[:, None]) + 0.08 * face[:, None]


def _ground(place: str, texture: int, size: int) -> Tensor:
    """A place's ground: its colour under soft blotches of light, [3, H, W]."""
    if place not in PLACES:
        raise ValueError(f"There is no place '{place}' in the toy world; it knows {', '.join(PLACES)}.")
    generator = torch.Generator().manual_seed(texture)
    blotches = torch.randn(1, 1, 6, 6, generator=generator)
    light = torch.nn.functional.interpolate(blotches, size=(size, size), mode="bicubic", align_corners=False)[0]
    base = torch.tensor(PLACES[place], dtype=torch.float32)[:, None, None] / 255
    return (base * (1 + 0.045 * light.clamp(-2, 2))).clamp(0, 1)


# -------------------------------------------------------------------------------------------------- sampling


def _pick(options: Sequence, generator: torch.Generator):
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def random_subject(generator: torch.Generator, plain: float = 0.65) -> Subject:
    """A subject of the trained world; `plain` is the share without a pattern."""
    colours = list(COLOURS)
    colour = _pick(colours, generator)
    second = _pick([c for c in colours if c != colour], generator)
    shape = _pick(SHAPES, generator)
    pattern = "plain" if _uniform(0, 1, generator) < plain else _pick(PATTERNS[1:], generator)
    return Subject(shape, colour, second, pattern)


def jittered(scene: Scene, generator: torch.Generator) -> Scene:
    """The same scene at another size, offset, tilt and texture."""
    return replace(
        scene,
        size=_uniform(13, 16, generator),
        offset=(_uniform(-3, 3, generator), _uniform(-3, 3, generator)),
        tilt=_uniform(-0.15, 0.15, generator),
        texture=int(torch.randint(2**31, (1,), generator=generator)),
    )


def random_scene(generator: torch.Generator) -> Scene:
    """A scene of the trained world."""
    scene = Scene(random_subject(generator), _pick(MOTIONS, generator), _pick(list(PLACES), generator))
    return jittered(scene, generator)


def is_held_out(scene: Scene) -> bool:
    """Whether this combination of looks, motion and place is kept for evaluation: one in ten, by the caption."""
    return sum(ord(letter) * (index + 1) for index, letter in enumerate(scene.caption)) % 10 == 7


def training_scene(generator: torch.Generator) -> Scene:
    """A scene whose caption the base may learn from."""
    while is_held_out(scene := random_scene(generator)):
        pass
    return scene


def held_out_scenes(count: int, seed: int = 1) -> list[Scene]:
    """`count` scenes with distinct captions that the base never trained on."""
    generator = torch.Generator().manual_seed(seed)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = random_scene(generator)
        if is_held_out(scene):
            scenes.setdefault(scene.caption, scene)
    return list(scenes.values())


def photographs(subject: Subject, count: int = 4, seed: int = 0) -> list[Canvas]:
    """`count` photographs of one subject in different places, sizes and positions, each a one-frame Canvas."""
    generator = torch.Generator().manual_seed(seed)
    places = list(PLACES)
    shots = []
    for index in range(count):
        scene = jittered(Scene(subject, "standing still", places[index % len(places)]), generator)
        scene = replace(scene, offset=(_uniform(-9, 9, generator), _uniform(-9, 9, generator)))
        shots.append(render(scene, frames=1))
    return shots
