"""The engine's sampler under the host's guider."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import torch
from einops import rearrange
from torch import Tensor

from ...dreamvideo.models.diffusion import SCHEDULE, ddim_invert, ddim_sample, ddim_timesteps
from .adapters import without_adapters
from .model import unet_of

VIDEO_TO_FRAMES, FRAMES_TO_VIDEO = "1 c f h w -> f c h w", "f c h w -> 1 c f h w"  # from ours to the host's, and back


class _Ddim(comfy.samplers.Sampler):
    """The authors' sampler (diffusion.ddim_sample, or ddim_invert) over the host's guider."""

    def __init__(self, steps: int, backwards: bool = False) -> None:
        self.steps, self.backwards = steps, backwards

    def sigma(self, t: int) -> float:
        kept = float(SCHEDULE.alphas_cumprod[t])
        return ((1 - kept) / kept) ** 0.5

    def sigmas(self) -> Tensor:
        return torch.tensor([*(self.sigma(t) for t in ddim_timesteps(self.steps)), 0.0])

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
            return rearrange(ddim_invert(predict, video, self.steps), VIDEO_TO_FRAMES)
        return rearrange(ddim_sample(predict, video, self.steps, callback=told), VIDEO_TO_FRAMES)


def sample(model: Any, positive: Any, negative: Any, noise: Tensor, steps: int, guidance: float, seed: int) -> Tensor:
    """Latents [F, 4, h, w] as the host keeps them, from noise [F, 4, h, w] of variance one."""
    unet_of(model)
    total = len(ddim_timesteps(steps))
    return _guided(model, positive, negative, noise, guidance, _Ddim(steps), seed,
                   latent_preview.prepare_callback(model, total))  # fmt: skip


def invert(model: Any, empty: Any, latents: Tensor, steps: int) -> Tensor:
    """The noise [F, 4, h, w] that would sample these latents on the base; empty: the empty prompt's CONDITIONING."""
    base = without_adapters(model)
    format = base.model
    found = _guided(base, empty, empty, format.process_latent_in(latents), 1.0, _Ddim(steps, backwards=True), 0, None)
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
