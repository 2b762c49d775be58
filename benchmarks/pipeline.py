"""diffusers' own way from text states to latents: `TextToVideoSDPipeline`, with DDIM set up as ours is.

Fair: the same weights in the same precision (ours, so on a GPU half precision and not autocast), the same noise, both
halves of guidance as one batch on either side, and the same latents in the end, which is checked before timing.
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, TextToVideoSDPipeline
from torch import Tensor

from dreamvideo.models.diffusion import SCHEDULE
from dreamvideo.models.unet import UNet

from .authors import twin_of


class Pipeline:
    def __init__(self, unet: UNet) -> None:
        scheduler = DDIMScheduler(
            num_train_timesteps=SCHEDULE.steps,
            beta_start=SCHEDULE.beta_start,
            beta_end=SCHEDULE.beta_end,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        twin = twin_of(unet).to(unet.dtype)
        self.pipeline = TextToVideoSDPipeline(None, None, None, twin, scheduler)
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def sample(self, context: Tensor, uncond: Tensor, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """Latents [1, 4, F, h, w] from noise of that shape; context, uncond [1, 77, D]."""
        dtype = self.pipeline.unet.dtype
        return self.pipeline(
            height=8 * noise.shape[3],
            width=8 * noise.shape[4],
            num_frames=noise.shape[2],
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise.to(dtype),
            prompt_embeds=context.to(dtype),
            negative_prompt_embeds=uncond.to(dtype),
            output_type="latent",
        ).frames
