"""How true a video of the comparison is to what its case asks for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from . import fidelity, rules, world
from .cases import Case


def score(frames: Tensor, case: Case) -> dict[str, float]:
    """The three exact metrics of a video [F, 3, H, W]; of two subjects the mean, each looked for in its half alone."""
    if case.other:
        each = [_score(half, part) for half, part in zip(_squares(frames), _parts(case), strict=True)]
        return {name: sum(part[name] for part in each) / len(each) for name in each[0]}
    return _score(frames, case)


def _score(frames: Tensor, case: Case) -> dict[str, float]:
    found = fidelity.find(frames, case.looks)
    colour = "" if case.new_subject else case.looks.colour
    return {
        "subject": fidelity.subject_fidelity(found),
        "motion": fidelity.motion_fidelity(found.path, world.path_of(case.motion, len(frames))),
        "context": fidelity.context_fidelity(frames, case.place, colour),
    }


def _parts(case: Case) -> tuple[Case, Case]:
    return replace(case, other=""), replace(case, subject=case.other, other="")


def _squares(frames: Tensor) -> list[Tensor]:
    """The halves of a video [F, 3, H, W], each between strips of its ground's colour, as wide as the whole."""
    halves = frames.split(frames.shape[-1] // 2, dim=-1)
    grounds = [rules.ground_of(half)[:, :, None, None] for half in halves]  # [F, 3, 1, 1]
    wings = frames.shape[-2], frames.shape[-1] // 4
    beside = [ground.expand(-1, -1, *wings) for ground in grounds]
    return [torch.cat([wing, half, wing], dim=-1) for half, wing in zip(halves, beside, strict=True)]
