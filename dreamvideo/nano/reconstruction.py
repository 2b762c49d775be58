"""What the embedded base's autoencoder keeps of things that it never saw: its gate, before any UNet is trained on it.

Nothing made in the latents can look better than a reconstruction, so this is the ceiling of every method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoders.protocols import Autoencoder
from ..evaluation.pictures import contact_sheet
from . import fidelity, package, world

PLACES = tuple(world.PLACES)
# What must be reached: mean subject fidelity, that of the worst subject, motion fidelity, and each of the rules.
MEAN, WORST, MOTION, RULES = 0.85, 0.75, 0.97, 0.99


@dataclass(frozen=True)
class Kept:
    """Shares kept of each held-out subject, over the held-out motions: subject and motion fidelity, and the rules'."""

    subjects: dict[str, float]
    motion: float
    rules: dict[str, float]
    decibels: float  # mean peak signal-to-noise ratio of the frames

    @property
    def mean(self) -> float:
        return sum(self.subjects.values()) / len(self.subjects)

    @property
    def passes(self) -> bool:
        enough = self.mean >= MEAN and min(self.subjects.values()) >= WORST and self.motion >= MOTION
        return enough and min(self.rules.values()) >= RULES

    def lines(self) -> list[str]:
        """The reading as sentences for a terminal."""
        each = ", ".join(f"{name} {share:.3f}" for name, share in self.subjects.items())
        rules = ", ".join(f"{name} {share:.1%}" for name, share in self.rules.items())
        return [
            f"subject fidelity {self.mean:.3f} (at least {MEAN}): {each} (each at least {WORST})",
            f"motion fidelity {self.motion:.3f} (at least {MOTION}); {self.decibels:.1f} dB",
            f"rules: {rules} (each at least {RULES:.0%})",
            "The gate is passed." if self.passes else "The gate is not passed.",
        ]


def scenes() -> Iterator[tuple[str, world.Scene]]:
    """The held-out subjects in the held-out motions, each at a place of its own turn."""
    for row, (name, subject) in enumerate(world.HELD_OUT_SUBJECTS.items()):
        for column, motion in enumerate(world.HELD_OUT_MOTIONS):
            yield name, world.Scene(subject, motion, PLACES[(row + column) % len(PLACES)], texture=6 * row + column)


def measure(
    vae: Autoencoder, size: int = world.SIZE, captions: int = 100, report: Callable[[str], None] | None = None
) -> tuple[Kept, Tensor]:
    """Measure reconstructions at `size` pixels a side; also the sheet of them beside their truth, [3, H, W] in 0..1."""
    shares: dict[str, list[float]] = {name: [] for name in world.HELD_OUT_SUBJECTS}
    motions, decibels, rows = [], [], []
    for name, scene in scenes():
        truth = world.render(scene, size=size).frames  # [F, 3, H, W]
        kept = reconstructed(vae, truth)
        found = fidelity.find(kept, scene.subject)
        shares[name].append(fidelity.subject_fidelity(found))
        motions.append(fidelity.motion_fidelity(found.path, world.path_of(scene.motion)))
        decibels.append(float(-10 * (kept - truth).square().mean((1, 2, 3)).log10().mean()))
        if scene.motion == world.HELD_OUT_MOTIONS[0]:
            rows.append((name, truth, kept))
        if report:
            report(f"{scene.caption}: subject {shares[name][-1]:.3f}, motion {motions[-1]:.3f}")
    subjects = {name: sum(each) / len(each) for name, each in shares.items()}
    mean_motion, mean_decibels = (sum(each) / len(each) for each in (motions, decibels))
    rules = package.measure_autoencoder(vae, captions, size)
    return Kept(subjects, mean_motion, rules, mean_decibels), sheet(rows, size)


@torch.no_grad()
def reconstructed(vae: Autoencoder, frames: Tensor) -> Tensor:
    """Frames [F, 3, H, W] in 0..1, encoded and decoded."""
    return vae.decode(vae.encode(frames).mean)


def sheet(rows: Sequence[tuple[str, Tensor, Tensor]], size: int) -> Tensor:
    """Every other frame of each subject, its truth over its reconstruction: [3, H, W] in 0..1."""
    pairs = [
        (label, list(frames[::2])) for name, truth, kept in rows for label, frames in ((name, truth), ("kept", kept))
    ]
    return contact_sheet(pairs, title="What the autoencoder keeps of held-out subjects", tile=size)
