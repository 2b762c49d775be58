"""The videos that the embedded base learns from, encoded once: families of one subject in one place on all ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..encoders.protocols import Autoencoder
from ..safety.paths import atomic_path
from . import wild, world
from .progress import processes, rank
from .vision_language import caption_of

FAMILIES, PART = 600, 50  # in the bank, and how many of them a file holds
FIRST = 1  # of their seeds; no way of this family is held out
PATTERNED = 3.0  # how much likelier a step is to draw a patterned subject's video than a plain one's: they are harder
NO_WORDS = 0.1  # the share of captions left out, for guidance


@dataclass(frozen=True)
class Bank:
    """Families of scenes, and their latents [N, F, 4, h, w] in half precision, whole and at half the size."""

    families: list[list[world.Scene]]
    whole: Tensor
    half: Tensor

    @property
    def scenes(self) -> list[world.Scene]:
        """All N, a family's beside each other."""
        return [scene for family in self.families for scene in family]

    def videos(self, count: int, small: bool, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents [count, 4, F, h, w] of any of the videos, and their captions."""
        chosen = self._any(count, generator)
        return self._latents(chosen, small), self._captions(chosen, generator)

    def pictures(self, count: int, small: bool, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents [count, 4, 1, h, w] of one frame of any of the videos each, and captions without the way."""
        chosen = self._any(count, generator)
        frames = torch.randint(world.FRAMES, (count, 1, 1, 1, 1), generator=generator)
        picked = self._latents(chosen, small).take_along_dim(frames, dim=2)  # [count, 4, 1, h, w]
        return picked, self._captions(chosen, generator, moving=False)

    def ways(self, families: int, small: bool, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """The named ways of one of the first `families` families; what else their captions say is the same in all."""
        index = int(torch.randint(min(families, len(self.families)), (1,), generator=generator))
        first = sum(len(family) for family in self.families[:index])
        named = [first + place for place, scene in enumerate(self.families[index]) if scene.motion != world.WANDERING]
        chosen, seed = torch.tensor(named), int(torch.randint(2**31, (1,), generator=generator))
        scenes = self.scenes
        captions = [caption_of(scenes[place], torch.Generator().manual_seed(seed)) for place in named]
        return self._latents(chosen, small), _some_dropped(captions, generator)

    def _any(self, count: int, generator: torch.Generator) -> Tensor:
        weights = torch.tensor([1.0 if scene.subject.pattern == "plain" else PATTERNED for scene in self.scenes])
        return weights.multinomial(count, replacement=True, generator=generator)

    def _latents(self, chosen: Tensor, small: bool) -> Tensor:
        return (self.half if small else self.whole)[chosen].float().transpose(1, 2)

    def _captions(self, chosen: Tensor, generator: torch.Generator, moving: bool = True) -> list[str]:
        scenes = self.scenes
        captions = [caption_of(scenes[index], generator, moving) for index in chosen.tolist()]
        return _some_dropped(captions, generator)


def _some_dropped(captions: list[str], generator: torch.Generator) -> list[str]:
    dropped = torch.rand(len(captions), generator=generator) < NO_WORDS
    return ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]


def bank(folder: Path, autoencoder: Autoencoder) -> Bank:
    """FAMILIES families, encoded once and kept in `folder`. Processes of a group share the work."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first:06}.pt" for first in range(0, FAMILIES, PART)]
    for path in paths[rank() :: processes()]:
        if not path.exists():
            scenes = [scene for index in range(PART) for scene in _family(int(path.stem) + index)]
            sizes = {"whole": world.SIZE, "half": world.SIZE // 2}
            latents = {name: _encoded(autoencoder, scenes, size) for name, size in sizes.items()}
            with atomic_path(path) as temporary:
                torch.save(latents, temporary)
    if dist.is_initialized():
        dist.barrier()
    found = [torch.load(path, weights_only=True) for path in paths]
    whole, half = (torch.cat([part[name] for part in found]) for name in ("whole", "half"))
    return Bank([_family(index) for index in range(FAMILIES)], whole, half)


def _encoded(autoencoder: Autoencoder, scenes: list[world.Scene], size: int) -> Tensor:
    """[N, F, 4, h, w] in half precision."""

    def latents(scene: world.Scene) -> Tensor:
        frames = world.render(scene, size=size).frames
        with torch.autocast("cpu", torch.bfloat16):
            return autoencoder.encode(frames).mean.half().cpu()

    return torch.stack([latents(scene) for scene in scenes])


def _family(index: int) -> list[world.Scene]:
    return wild.family(torch.Generator().manual_seed(FIRST + index))
