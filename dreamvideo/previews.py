"""What a training shows of itself: a video of its first caption, and a sheet of all its snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .base import Base
from .customizing import customize
from .encoders.protocols import release
from .evaluation.pictures import contact_sheet, few_frames
from .files.adapter_info import AdapterInfo, TrainedAdapter
from .files.adapters import load_adapter
from .models.diffusion import Callback
from .sampling import generate, plain_prompt
from .training.data import TrainingData
from .training.places import snapshots_of
from .training.settings import TrainingSettings

STEPS = 25  # of DDIM: half of a sampling's, for a look


def preview_video(
    base: Base, data: TrainingData, trained: TrainedAdapter, seed: int, callback: Callback | None = None
) -> tuple[str, Tensor]:
    """The first caption as a prompt, and its video [F, 3, H, W] in 0..1 under what was trained.

    Of the size of the data and, for photographs, of the base's own length. callback: see `diffusion.ddim_sample`.
    """
    height, width = (8 * side for side in data.items[0].mean.shape[2:])
    prompt = plain_prompt(data.captions[0], trained.tokens)
    frames = data.frames if data.frames > 1 else None
    settings = base.defaults.sampling(prompt, height=height, width=width, frames=frames, seed=seed, steps=STEPS)
    video = generate(base.unet, base.encoders, settings, customize([trained]), callback=callback)
    release(base.encoders.text, base.encoders.vae)
    return prompt, video


def snapshot_sheet(
    base: Base,
    data: TrainingData,
    out: Path,
    settings: TrainingSettings,
    sampling: Callable[[], Callback | None] = lambda: None,
) -> Tensor:
    """A picture [3, H, W] in 0..1: what each snapshot of an adapter, and itself, makes of one prompt and seed.

    sampling: gives what follows the sampling of one row.
    """
    whole = load_adapter(out, base.unet.config)
    learned = [load_adapter(path, base.unet.config) for steps, path in snapshots_of(out) if steps < settings.steps]
    learned = [each for each in learned if _same_training(each.info, whole.info)]  # others may lie there from before
    rows, prompt = [], ""
    for each in (*learned, whole):
        prompt, video = preview_video(base, data, each, settings.seed, sampling())
        rows.append((f"step {each.info.steps}", few_frames(video)))
    return contact_sheet(rows, title=prompt)


def _same_training(a: AdapterInfo, b: AdapterInfo) -> bool:
    return replace(a, steps=None, run="") == replace(b, steps=None, run="")
