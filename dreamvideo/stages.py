"""A subject's two stages as one resumable call, and clips at the rate a motion is learned at. No host in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .encoders import Encoders
from .media import Clip, choose_frames
from .training import Callbacks, TrainingResult, TrainingSettings, train_identity, train_textual_inversion
from .training_data import encode_photos
from .unet import UNet


@dataclass(frozen=True)
class SubjectResult:
    """What the stages gave: `token` (kind "token") and, unless that one was stopped, `identity`, the file to keep."""

    token: TrainingResult
    identity: TrainingResult | None

    @property
    def stopped(self) -> bool:
        """By request, before the last step of the last stage."""
        return self.identity is None or self.identity.stopped

    @property
    def losses(self) -> dict[str, list[float]]:
        """Stage -> loss of each of its steps."""
        results = {"token": self.token, "identity": self.identity}
        return {stage: result.losses for stage, result in results.items() if result is not None}


def train_subject(
    unet: UNet,
    encoders: Encoders,
    photos: Sequence[Tensor],
    masks: Sequence[Tensor | None] | None,
    captions: str | Sequence[str],
    *,
    placeholder: str,
    class_word: str,
    token_settings: TrainingSettings | None = None,
    identity_settings: TrainingSettings | None = None,
    callbacks_for: Callable[[str], Callbacks] = lambda stage: Callbacks(),
    state_folder: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> SubjectResult:
    """Learn a subject: textual inversion, then the identity adapter under the token it found (Wei et al., section 3.1).

    photos, masks, captions: as `training_data.encode_photos` takes them; every caption holds the placeholder.
    callbacks_for: "token" or "identity" -> what the host hears of that stage. state_folder: keeps each stage's training
    state as <stage>.safetensors; with `resume` a run goes on from there, and a stage that is done is not run again.
    Raises ValueError for a placeholder that is an ordinary word, and what the stages raise.
    """
    encoders.text.check_placeholder(placeholder)
    data = encode_photos(photos, captions, encoders, masks)

    def hooks(stage: str) -> dict[str, Any]:
        path = None if state_folder is None else Path(state_folder) / f"{stage}.safetensors"
        return {"callbacks": callbacks_for(stage), "state_path": path, "resume": resume}

    about = {"class_word": class_word}
    token = train_textual_inversion(
        unet, encoders.text, data, placeholder=placeholder, settings=token_settings, **about, **hooks("token")
    )
    if token.stopped:
        return SubjectResult(token, None)
    tokens = token.trained.tokens
    identity = train_identity(
        unet, encoders.text, data, tokens=tokens, settings=identity_settings, **about, **hooks("identity")
    )
    return SubjectResult(token, identity)


def motion_frames(clip: Clip, frames: int, fps: float) -> tuple[Tensor, str]:
    """All of a clip at `fps` frames a second, for `encode_clips`: pixels [N, 3, H, W], N at least `frames`.

    The text says what had to give where the clip is short or slow, and what was left out while it was read.
    """
    seconds = len(clip.times) / clip.fps
    whole = int(seconds * min(fps, clip.fps) + 1e-6)
    choice = choose_frames(clip.times, max(frames, whole), fps, start=0.0)
    return clip.pixels(choice.indices), " ".join(note for note in (clip.note, choice.note) if note)
