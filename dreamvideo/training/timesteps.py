"""How a training draws its timesteps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..models.diffusion import SCHEDULE

DrawTimesteps = Callable[[int, torch.Generator], Tensor]
"""(how many, CPU generator) -> integer timesteps [how many] in 0..999."""

NOISY_BIAS = 0.5  # how much `noisy_timesteps` leans: 0 would be uniform, 1 would never take a clean video


def uniform_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Every timestep equally likely (Ho et al. 2020, algorithm 1): int64 [count]."""
    return torch.randint(SCHEDULE.steps, (count,), generator=generator)


def noisy_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Timesteps drawn towards the noisy end, where motion is decided: p(t) ~ 1 - a cos(pi t / T): int64 [count].

    From Materzynska et al. 2023 (arXiv 2312.04966); a, `NOISY_BIAS`, is 0.5.
    """
    t = torch.arange(SCHEDULE.steps)
    weights = 1 - NOISY_BIAS * torch.cos(math.pi * t / SCHEDULE.steps)
    return torch.multinomial(weights, count, replacement=True, generator=generator)
