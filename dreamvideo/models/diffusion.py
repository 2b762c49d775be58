"""Noise schedule, offset noise, the training loss, DDIM and its inversion.

The schedule and the samplers are those of the released DreamVideo: 1000 steps, scaled-linear betas, epsilon
prediction, deterministic DDIM (Song et al., arXiv 2010.02502). Latents are [B, C, F, h, w] throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .config import NetworkConfig

Predict = Callable[[Tensor, int], Tensor]
"""The noise in x at integer timestep t: (x, t) -> epsilon, of the shape of x."""

Callback = Callable[[int, int, Tensor], None]
"""Told after each sampling step: (steps done, steps in all, the current estimate of the clean latents)."""


@dataclass(frozen=True)
class Schedule:
    """Betas that are linear in their square root, as of Stable Diffusion and ModelScope, or linear as AnimateDiff's."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    linear: bool = False

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Share of the signal's variance left at each timestep, float64 [steps]."""
        power = 1.0 if self.linear else 2.0
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        betas = torch.linspace(*ends, self.steps, dtype=torch.float64) ** power
        return torch.cumprod(1.0 - betas, dim=0)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse x0 [B, ...] with noise [B, ...] to integer timesteps [B] (DDPM, arXiv 2006.11239, eq. 4)."""
        exact = torch.promote_types(x0.dtype, torch.float32)
        signal, sigma = (
            table.to(exact).to(x0.device)[timesteps.to(x0.device).long()].view(-1, *[1] * (x0.ndim - 1))  # [B, 1, ...]
            for table in (self.alphas_cumprod.sqrt(), (1.0 - self.alphas_cumprod).sqrt())
        )
        return (signal * x0 + sigma * noise).to(x0.dtype)


SCHEDULE = Schedule()
LINEAR_SCHEDULE = Schedule(linear=True)


def schedule_for(config: NetworkConfig) -> Schedule:
    """The one that a network was trained with."""
    return LINEAR_SCHEDULE if config.linear_betas else SCHEDULE


def offset_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    strength: float = 0.1,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gaussian noise [B, C, F, h, w] whose mean varies per channel and per frame, variance 1 + strength^2.

    The authors use it for training (added to the latents and regressed) and as the start of sampling. It is drawn
    on the generator's device and moved, so a CPU generator gives the same noise on every machine.
    """
    batch, channels, frames, _, _ = shape
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    offset = torch.randn((batch, channels, frames, 1, 1), generator=generator, device=generator.device)
    return (noise + strength * offset).to(device=device, dtype=dtype)


def diffusion_loss(
    prediction: Tensor, noise: Tensor, mask: Tensor | None = None, normalize_mask: bool = False
) -> Tensor:
    """Mean squared error of the predicted noise, in float32 or better: per video, then over the batch; a scalar.

    prediction, noise [B, C, F, h, w]; mask [B, 1, F or 1, h, w], 1 on the subject. The authors' masked loss is the
    mean over all elements, masked ones included, so a small subject weighs less; with `normalize_mask` it is the mean
    over the masked elements (a video with an empty mask counts as 0).
    """
    exact = torch.promote_types(prediction.dtype, torch.float32)
    prediction, noise = prediction.to(exact), noise.to(exact)
    if mask is None:
        return (prediction - noise).square().mean()
    mask = mask.to(exact)
    errors = (mask * prediction - mask * noise).square()  # [B, C, F, h, w]
    if not normalize_mask:
        return errors.mean()
    area = mask.expand_as(errors).flatten(1).sum(1)  # [B]
    return (errors.flatten(1).sum(1) / area.clamp(min=1.0)).mean()


def against_a_frame(
    prediction: Tensor, noise: Tensor, mask: Tensor | None, anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Prediction, noise and mask of a loss that looks weigh less in: sqrt(2) times each frame's less one frame's.

    What all frames have in common, as looks are, falls out of the difference (MotionDirector, Zhao et al.,
    arXiv 2310.08465, section 3.3, beta = 1). anchors [B]: that frame of each video. Shapes as for `diffusion_loss`;
    of a mask remains where both frames have it.
    """

    def anchor(x: Tensor) -> Tensor:
        return x[torch.arange(len(x), device=x.device), :, anchors.to(x.device)].unsqueeze(2)  # [B, C, 1, h, w]

    exact = torch.promote_types(prediction.dtype, torch.float32)
    prediction, noise = (2**0.5 * x - anchor(x) for x in (prediction.to(exact), noise.to(exact)))
    return prediction, noise, None if mask is None else mask * anchor(mask)


def ddim_timesteps(n: int, schedule: Schedule = SCHEDULE) -> list[int]:
    """The authors' descending timesteps 1 + k * (steps // n): 981, 961, ..., 1 for n = 50.

    Where n does not divide the schedule's steps the stride is rounded down and the list is longer than n: 31 entries
    from 991 for n = 30. Raises ValueError unless 1 <= n <= steps.
    """
    stride = _stride(n, schedule)
    return [min(1 + t, schedule.steps - 1) for t in reversed(range(0, schedule.steps, stride))]


@torch.no_grad()
def ddim_sample(
    predict: Predict,
    noise: Tensor,
    steps: int = 50,
    schedule: Schedule = SCHEDULE,
    callback: Callback | None = None,
) -> Tensor:
    """Deterministic DDIM from noise [B, C, F, h, w] to latents of the same shape and dtype.

    The last step lands on the first cumulative alpha and not on 1: about 2.9 % noise is left, which is what the
    authors decode. Raises ValueError for a number of steps outside the schedule.
    """
    timesteps = ddim_timesteps(steps, schedule)
    stride = _stride(steps, schedule)
    alphas = schedule.alphas_cumprod.tolist()
    x = noise
    for done, t in enumerate(timesteps, start=1):
        epsilon = predict(x, t).to(x.dtype)
        if callback is not None:
            callback(done, len(timesteps), _move(x, epsilon, alphas[t], 1.0))
        x = _move(x, epsilon, alphas[t], alphas[max(t - stride, 0)])
    return x


@torch.no_grad()
def ddim_invert(
    predict: Predict,
    latents: Tensor,
    steps: int = 50,
    schedule: Schedule = SCHEDULE,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """DDIM run backwards, from latents [B, C, F, h, w] to the noise that would sample them (t = 0, 20, ..., 980).

    The last step goes to a cumulative alpha of 0, so the result is the noise predicted there, as the authors have it.
    callback: takes (steps done, of how many).
    """
    stride = _stride(steps, schedule)
    alphas = [*schedule.alphas_cumprod.tolist(), 0.0]
    x = latents
    timesteps = range(0, schedule.steps, stride)
    for done, t in enumerate(timesteps, start=1):
        x = _move(x, predict(x, t).to(x.dtype), alphas[t], alphas[min(t + stride, schedule.steps)])
        if callback is not None:
            callback(done, len(timesteps))
    return x


def mix_noise_prior(noise: Tensor, inverted: Tensor, strength: float) -> Tensor:
    """Start of sampling that remembers a clip: sqrt(s) * inverted + sqrt(1 - s) * noise, variance-preserving.

    The authors suggest strengths from 0 to 0.5. Raises ValueError for one outside 0..1 and for unlike shapes.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"The strength of the noise prior must lie between 0 and 1, got {strength}.")
    if noise.shape != inverted.shape:
        raise ValueError(f"The inverted clip has shape {tuple(inverted.shape)}, the noise {tuple(noise.shape)}.")
    return strength**0.5 * inverted.to(noise) + (1.0 - strength) ** 0.5 * noise


def _stride(n: int, schedule: Schedule) -> int:
    if not 1 <= n <= schedule.steps:
        raise ValueError(f"The number of DDIM steps must lie between 1 and {schedule.steps}, got {n}.")
    return schedule.steps // n


def _move(x: Tensor, epsilon: Tensor, alpha: float, target: float) -> Tensor:
    """DDIM's update (eq. 12 with sigma 0) from one cumulative alpha to another, collected into two coefficients."""
    scale = (target / alpha) ** 0.5
    return scale * x + ((1.0 - target) ** 0.5 - scale * (1.0 - alpha) ** 0.5) * epsilon
