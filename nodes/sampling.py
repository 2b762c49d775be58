"""Appearance guidance, the paper's sampler, and the comparison of what adapters change."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from einops import rearrange

from ..dreamvideo.customizing import customize
from ..dreamvideo.evaluation.pictures import contact_sheet, few_frames
from ..dreamvideo.files.adapter_info import TrainedAdapter
from ..dreamvideo.models.diffusion import mix_noise_prior, offset_noise
from ..dreamvideo.models.network import check_frames
from ..dreamvideo.sampling import missing_placeholders
from . import host
from .adapters import apply
from .fields import (
    CATEGORY,
    MAX_FRAMES,
    Adapter,
    check_size,
    clip_input,
    engine_images,
    host_images,
    model_input,
    most,
    other_base_input,
    seed_input,
    size_inputs,
    vae_input,
)


def _sampling_inputs(frames: int = 32, steps: int = 50) -> list:
    return [
        io.Int.Input(
            "steps",
            default=steps,
            min=1,
            max=1000,
            tooltip="DDIM steps; 50 as in the paper, 25 for AnimateDiff. A number that divides 1000 is taken exactly.",
        ),
        io.Float.Input(
            "cfg",
            default=9.0,
            min=1.0,
            max=most("guidance"),
            step=0.5,
            tooltip=(
                "Scale of classifier-free guidance: 9 as in the paper, 8 for AnimateDiff; lower is softer, higher "
                "follows the text."
            ),
        ),
        io.Int.Input(
            "frames",
            default=frames,
            min=1,
            max=MAX_FRAMES,
            tooltip=(
                "Length in frames; ModelScope was trained with 16 and 32, AnimateDiff with 16, the embedded base with "
                "8."
            ),
        ),
        *size_inputs(),
    ]


class EncodeAppearance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoEncodeAppearance",
            display_name="Encode Appearance Guidance",
            category=CATEGORY,
            description=(
                "Shows a motion adapter what the video shall look like, so that it adds the motion only. "
                "Takes an image, or the photographs' features that a subject's file keeps."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Conditioning.Input("negative", tooltip="The encoded negative prompt; it gets a blank image."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Strength of the image beside the positive prompt: 1 as trained, less if looks leak in.",
                ),
                io.Float.Input(
                    "negative_strength",
                    default=-1.0,
                    min=-1.0,
                    max=4.0,
                    step=0.05,
                    tooltip=(
                        "Strength of the blank image beside the negative prompt; -1 follows the motion: 1 where it was "
                        "learned from one clip, 0 where from several, for then it never saw a blank image."
                    ),
                ),
                Adapter.Input("subject", optional=True, tooltip="A subject's adapter, for the features it keeps."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="The image encoder, where an image is given."
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="What the video shall look like; its first picture counts."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the image."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with a blank image."),
            ],
        )

    @classmethod
    def execute(
        cls, positive, negative, strength=1.0, negative_strength=-1.0, subject=None, clip_vision=None, image=None
    ) -> io.NodeOutput:
        feature = _feature(subject, clip_vision, image)
        return io.NodeOutput(
            host.with_appearance(positive, feature, strength),
            host.with_appearance(negative, torch.zeros_like(feature), negative_strength),
        )


def _feature(subject: TrainedAdapter | None, clip_vision, image) -> torch.Tensor:
    if image is not None:
        if clip_vision is None:
            raise ValueError(
                "An image needs the CLIP_VISION to be read: connect the one that the motion was trained with, of Load "
                "ModelScope T2V or Load CLIP Vision."
            )
        return host.HostImage(clip_vision).encode(engine_images(image)[:1])
    if subject is None or subject.features is None:
        raise ValueError(
            "There is nothing to guide by: connect an image and CLIP_VISION, or a subject's adapter that keeps "
            "features of its photographs."
        )
    return subject.features[:1].float()


class SampleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoSampler",
            display_name="DreamVideo Sampler",
            category=CATEGORY,
            description=(
                "Samples a video as the paper does: DDIM from noise with a shared part in every frame, "
                "optionally beginning with the noise of a clip. The stock KSampler works on the same model too."
            ),
            inputs=[
                model_input("The video model, with or without adapters."),
                io.Conditioning.Input("positive", tooltip="The encoded prompt, with or without appearance guidance."),
                io.Conditioning.Input("negative", tooltip="The encoded negative prompt; the paper's is empty."),
                seed_input("Decides the noise: the same seed and settings give the same video.", control=True),
                *_sampling_inputs(),
                io.Float.Input(
                    "offset_noise",
                    default=0.1,
                    min=0.0,
                    max=most("offset_noise"),
                    step=0.01,
                    tooltip="Strength of noise that all pixels of a frame share; 0.1 as adapters are trained.",
                ),
                io.Float.Input(
                    "prior_strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How much of the prior clip's own noise the start holds: 0 nothing, 0.1 to 0.5 keeps its "
                        "motion more closely, 1 is for Tune-A-Video. For motions from one clip only."
                    ),
                ),
                io.Latent.Input(
                    "prior",
                    optional=True,
                    tooltip="The clip whose motion the start remembers: VAE Encode of as many frames of the same size.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For a prior beside a negative prompt: its noise is found under the empty one.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The video's frames as a batch, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        seed=0,
        steps=50,
        cfg=9.0,
        frames=32,
        width=256,
        height=256,
        offset_noise=0.1,
        prior_strength=0.0,
        prior=None,
        clip=None,
    ) -> io.NodeOutput:
        noise = start(host.unet_of(model).config, seed, frames, width, height, offset_noise)
        if prior_strength > 0:
            latents = _prior(prior, noise)
            empty = negative if clip is None else clip.encode_from_tokens_scheduled(clip.tokenize(""))
            noise = mix_noise_prior(noise, host.invert(model, empty, latents, steps), prior_strength)
        return io.NodeOutput({"samples": host.sample(model, positive, negative, noise, steps, cfg, seed)})


def start(config, seed: int, frames: int, width: int, height: int, offset: float) -> torch.Tensor:
    """The engine's starting noise, [F, 4, h, w]."""
    check_size(config, width, height)
    check_frames(config, frames)
    shape = (1, config.in_channels, frames, height // 8, width // 8)
    noise = offset_noise(shape, torch.Generator().manual_seed(seed), offset)
    return rearrange(noise, "1 c f h w -> f c h w").contiguous()


def _prior(prior, noise: torch.Tensor) -> torch.Tensor:
    if prior is None:
        raise ValueError("A noise prior needs the clip it comes from: connect its latents or set prior_strength to 0.")
    latents = prior["samples"].float().cpu()
    if latents.shape != noise.shape:
        raise ValueError(
            f"The prior has latents of shape {list(latents.shape)} and the video {list(noise.shape)} "
            "(frames, channels, height / 8, width / 8): give the clip as many frames and the same size."
        )
    return latents


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        adapters = [
            Adapter.Input(f"adapter_{number}", optional=number > 1, tooltip="One of the adapters to compare.")
            for number in (1, 2, 3)
        ]
        return io.Schema(
            node_id="DreamVideoCompare",
            display_name="Compare DreamVideo Adapters",
            category=CATEGORY,
            description="The same prompt and seed with no adapter, with each, and with all: one picture, a row each.",
            inputs=[
                model_input("The video model without the adapters."),
                clip_input(),
                vae_input(),
                *adapters,
                io.String.Input(
                    "prompt",
                    default="a <my-subject> on the grass",
                    multiline=True,
                    tooltip="The prompt; where no adapter brings a placeholder, its class word is used instead.",
                ),
                io.String.Input("negative_prompt", default="", tooltip="What to keep away from; empty in the paper."),
                seed_input("Decides the noise, the same in every row.", control=True),
                *_sampling_inputs(),
                other_base_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The sheet: a row of frames for each combination.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        adapter_1,
        adapter_2=None,
        adapter_3=None,
        prompt="",
        negative_prompt="",
        seed=0,
        steps=50,
        cfg=9.0,
        frames=32,
        width=256,
        height=256,
        other_base=False,
    ) -> io.NodeOutput:
        adapters = [each for each in (adapter_1, adapter_2, adapter_3) if each is not None]
        noise = start(host.unet_of(model).config, seed, frames, width, height, 0.1)
        rows = [("no adapter", []), *((str(each.info), [each]) for each in adapters)]
        rows += [("all together", adapters)] if len(adapters) > 1 else []
        progress = host.Progress(cls.hidden.unique_id, len(rows))
        words = {name: each.info.class_word or "subject" for each in adapters for name in each.tokens}
        decoded = []
        for done, (label, chosen) in enumerate(rows):
            progress(done, len(rows), f"{label} ({done + 1} of {len(rows)})")
            on = (model, clip)
            for each in chosen:
                on = apply(*on, each, other_base=other_base)
            latents = _compare_row(*on, chosen, (prompt, negative_prompt), words, noise, steps, cfg, seed)
            decoded.append((label, few_frames(vae.decode(latents).movedim(-1, 1))))
        return io.NodeOutput(host_images(contact_sheet(decoded, title=prompt)[None]))


def _compare_row(model, clip, chosen, prompts, words, noise, steps, cfg, seed) -> torch.Tensor:
    custom = customize(chosen)
    conditions = []
    for prompt in prompts:
        for name in missing_placeholders(prompt, custom.tokens):
            prompt = prompt.replace(name, words.get(name, "subject"))
        conditions.append(clip.encode_from_tokens_scheduled(clip.tokenize(prompt)))
    positive, negative = conditions
    if custom.feature is not None:
        positive = host.with_appearance(positive, custom.feature, 1.0)
        blank = torch.zeros_like(custom.feature)
        negative = host.with_appearance(negative, blank, custom.feature_strength_uncond)
    return host.sample(model, positive, negative, noise, steps, cfg, seed)


NODES = [EncodeAppearance, SampleVideo, Compare]
