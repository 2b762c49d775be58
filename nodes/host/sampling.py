"""The engine's sampler under the host's guider."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import torch
from einops import rearrange
from torch import Tensor

from ...dreamvideo.models.diffusion import Schedule, ddim_invert, ddim_sample, ddim_timesteps, schedule_for
from .adapters import inverting
from .model import unet_of

VIDEO_TO_FRAMES, FRAMES_TO_VIDEO = "1 c f h w -> f c h w", "f c h w -> 1 c f h w"  # from ours to the host's, and back


class _Ddim(comfy.samplers.Sampler):
    """The authors' sampler (diffusion.ddim_sample, or ddim_invert) over the host's guider."""

    def __init__(self, steps: int, schedule: Schedule, backwards: bool = False) -> None:
        self.steps, self.schedule, self.backwards = steps, schedule, backwards

    def sigma(self, t: int) -> float:
        kept = float(self.schedule.alphas_cumprod[t])
        return ((1 - kept) / kept) ** 0.5

    def sigmas(self) -> Tensor:
        return torch.tensor([*(self.sigma(t) for t in ddim_timesteps(self.steps, self.schedule)), 0.0])

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        def predict(x: Tensor, t: int) -> Tensor:  # x [1, 4, F, h, w]
            sigma = self.sigma(t)
            scaled = rearrange(x, VIDEO_TO_FRAMES) * (1 + sigma**2) ** 0.5  # the host's noise has variance sigma^2
            clean = guider(scaled, torch.full((len(scaled),), sigma, device=x.device), **extra_args)
            return rearrange((scaled - clean) / sigma, FRAMES_TO_VIDEO)

        def told(done: int, total: int, clean: Tensor) -> None:
            if callback is not None:
                frames = rearrange(clean, VIDEO_TO_FRAMES)
                callback(done - 1, frames, frames, total)

        video = rearrange(noise.float(), FRAMES_TO_VIDEO)
        if self.backwards:
            return rearrange(ddim_invert(predict, video, self.steps, self.schedule), VIDEO_TO_FRAMES)
        return rearrange(ddim_sample(predict, video, self.steps, self.schedule, told), VIDEO_TO_FRAMES)


def sample(model: Any, positive: Any, negative: Any, noise: Tensor, steps: int, guidance: float, seed: int) -> Tensor:
    """Latents [F, 4, h, w] as the host keeps them, from noise [F, 4, h, w] of variance one."""
    schedule = schedule_for(unet_of(model).config)
    total = len(ddim_timesteps(steps, schedule))
    return _guided(model, positive, negative, noise, guidance, _Ddim(steps, schedule), seed,
                   latent_preview.prepare_callback(model, total))  # fmt: skip


def invert(model: Any, empty: Any, latents: Tensor, steps: int) -> Tensor:
    """The noise [F, 4, h, w] that would sample these latents on the base, or on what Tune-A-Video made of it.

    empty: the empty prompt's CONDITIONING.
    """
    base = inverting(model)
    format, sampler = base.model, _Ddim(steps, schedule_for(unet_of(base).config), backwards=True)
    found = _guided(base, empty, empty, format.process_latent_in(latents), 1.0, sampler, 0, None)
    return format.process_latent_in(found)


def _guided(model, positive, negative, noise, guidance, sampler, seed, callback) -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(guidance)
    return guider.sample(
        noise,
        torch.zeros_like(noise),
        sampler,
        sampler.sigmas(),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    ).cpu()
