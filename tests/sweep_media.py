"""A plan in miniature: two subjects, two motions and one method on the tiny base."""

from __future__ import annotations

from pathlib import Path

from fakes import pictures
from tiny_base import SIDE, write_tiny_base

from dreamvideo.media.writing import write_animation, write_png

PLAN = """
prompts = ["a {{subject}} {{motion}}"]
bases = [{{folder = "base", device = "cpu"}}]

[training.subject]
steps = {steps}
token_steps = 2
batch_size = 1
learning_rate = 0.1
save_every = 1
height = {side}
width = {side}

[training.motion]
steps = {steps}
learning_rate = 0.1
save_every = 1
frames = 2
height = {side}
width = {side}

[sampling]
steps = 1
frames = 2
height = {side}
width = {side}

[measure]
by_base = {measure}
"""


def write_media(folder: Path, subjects: int = 2, motions: int = 2) -> Path:
    """A base and, as the folder's convention wants it, photographs and clips."""
    (folder / "base").mkdir(parents=True)
    write_tiny_base(folder / "base")
    for index in range(subjects):
        write_png(folder / "subjects" / f"dog-{index + 1}" / "00.png", pictures(1, seed=index)[0])
    for index in range(motions):
        name = f"turn-{index + 1}"
        write_animation(folder / "motions" / f"{name}.gif", pictures(4, seed=10 + index), 8.0)
        (folder / "motions" / f"{name}.txt").write_text(f"a dog does a {name}\n")
    return folder


def plan(folder: Path, steps: int = 2, measure: bool = True, more: str = "") -> Path:
    """Write the plan beside the media; which is the folder."""
    text = PLAN.format(steps=steps, side=SIDE, measure=str(measure).lower())
    (folder / "sweep.toml").write_text(more + text)
    return folder


def adapters(out: Path) -> dict[str, bytes]:
    """Name -> bytes of every adapter and of its losses, without what a killed process was writing: it goes in time."""
    paths = [path for ending in ("safetensors", "csv") for path in (out / "adapters").rglob(f"*.{ending}")]
    whole = [path for path in paths if ".state" not in path.parent.name and not path.name.startswith(".")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in whole}
