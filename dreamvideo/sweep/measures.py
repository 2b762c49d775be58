"""What is measured of a video: the paper's metrics where their weights are given, and what the base's own CLIP sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import Base
from ..evaluation.metrics import Embedders, image_alignment, load_embedders, score_video, temporal_consistency

LIKENESS, STEADINESS = "Likeness (base's CLIP)", "Steadiness (base's CLIP)"


@dataclass(frozen=True)
class Measuring:
    """What to measure. clip, dino: files with the weights of the paper's metrics; by_base: with the base's own CLIP."""

    clip: str | None = None
    dino: str | None = None
    by_base: bool = True

    @property
    def any(self) -> bool:
        return self.by_base or self.clip is not None


@torch.no_grad()
def measured(
    frames: Tensor,
    words: str,
    photos: Sequence[Tensor],
    measuring: Measuring,
    base: Base | None,
    read: Callable[[str], Path] = Path,
) -> dict[str, float]:
    """Metric -> value for a video [F, 3, H, W] in 0..1. photos: of the subject, [3, H, W] each; there may be none.

    By the base's own CLIP: the mean cosine of the frames' image features with the photographs', and of consecutive
    frames' with one another. They need no download, and compare videos of one base alone.
    """
    scores: dict[str, float] = {}
    targets = torch.stack(list(photos)) if photos else None
    if measuring.clip is not None:
        dino = None if measuring.dino is None else str(read(measuring.dino))
        scores |= score_video(frames, words, targets, _embedders(str(read(measuring.clip)), dino))
    if base is not None:
        seen = _features(base, frames)
        if targets is not None:
            scores[LIKENESS] = image_alignment(seen, _features(base, targets))
        if len(frames) > 1:
            scores[STEADINESS] = temporal_consistency(seen)
    return scores


def _features(base: Base, images: Tensor) -> Tensor:
    """Image features of length 1, [N, D]."""
    return F.normalize(base.encoders.image.encode(images).float().cpu(), dim=1)


@lru_cache(maxsize=1)
def _embedders(clip: str, dino: str | None) -> Embedders:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_embedders(Path(clip), None if dino is None else Path(dino), device)
