"""Prompt + adapters -> frames: classifier-free guidance over DDIM, with the settings the authors sample with.

Previews during training, the command line and the hosts all come through here, so a preview shows what sampling will.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .customizing import NOTHING, Customization
from .encoders.layered import encode
from .encoders.loading import check_matches
from .encoders.prompts import unknown_placeholders
from .encoders.protocols import Encoders, at_once, release
from .files.unet_file import UNetFile
from .models.apart import predict_parts
from .models.diffusion import Callback, ddim_invert, ddim_sample, mix_noise_prior, offset_noise, schedule_for
from .models.frame_attention import FrameAttention
from .models.network import VideoUNet, check_frames
from .models.regions import Region
from .models.stack import AdapterStack, StackEntry
from .safety.limits import LIMITS
from .safety.sizes import check_divides
from .safety.texts import quoted, shortened

LATENT_FACTOR = 8  # pixels a latent cell covers along each side


@dataclass(frozen=True)
class SamplingSettings:
    """What to sample; the defaults are the paper's (section 4.1) and the released configs'.

    prompt, negative_prompt: what the video should and should not show. (words:1.4) weigh, as in `prompts.read_weights`.
    frames: length of the video.
    height, width: in pixels.
    steps: of DDIM.
    guidance: scale of classifier-free guidance. Ho and Salimans, arXiv 2207.12598; 1 leaves the negative prompt out.
    seed: decides the noise.
    fps: frames a second at which they are meant to be shown. It does not change them.
    feature_strength_cond: strength of the guidance image beside the prompt.
    feature_strength_uncond: strength of a zero image beside the negative prompt. None follows the motion: 1 where it
    was trained with dropped images (the authors' single-clip motions), else 0.
    offset_noise: strength of the noise that a frame's pixels share. Released: 0.1.
    prior_strength: share of a clip's inverted noise in the start. 0..1; released: 0 to 0.5, single-clip motions only.
    """

    prompt: str
    negative_prompt: str = ""
    frames: int = 32
    height: int = 256
    width: int = 256
    steps: int = 50
    guidance: float = 9.0
    seed: int = 0
    fps: float = 8.0
    feature_strength_cond: float = 1.0
    feature_strength_uncond: float | None = None
    offset_noise: float = 0.1
    prior_strength: float = 0.0

    def __post_init__(self) -> None:
        for name in ("frames", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"Sampling needs {name} of at least 1, got {quoted(getattr(self, name))}.")
        if self.frames > LIMITS["frames"].most:
            raise ValueError(f"Sampling takes at most {LIMITS['frames'].most} frames, got {quoted(self.frames)}.")
        for name in ("guidance", "feature_strength_cond", "feature_strength_uncond", "offset_noise", "prior_strength"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise ValueError(f"Sampling {name} must be a finite number, got {getattr(self, name)}.")
        if not LIMITS["fps"].hold(self.fps):
            raise ValueError(f"Sampling fps is {LIMITS['fps']} frames a second, got {self.fps:g}.")


def choose_device() -> torch.device:
    """The fastest device of this machine: cuda (with its index, as tensors there have it), mps or cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(device: torch.device | str) -> torch.dtype:
    """The base's precision there: bfloat16 on a cuda card that has it, else float16; float32 on the CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if kind == "mps" else torch.float32


def latent_size(unet: VideoUNet | UNetFile, height: int, width: int) -> tuple[int, int]:
    """Latent (h, w) of a video of height x width pixels. Raises ValueError, naming the nearest valid sizes."""
    check_divides("A video", width, height, LATENT_FACTOR * unet.config.stride)
    return height // LATENT_FACTOR, width // LATENT_FACTOR


def missing_placeholders(prompt: str, tokens: Mapping[str, Tensor]) -> list[str]:
    """Placeholders of a prompt for which there is no learned token."""
    return unknown_placeholders(prompt, tokens)


def check_prompts(settings: SamplingSettings, customization: Customization) -> None:
    """Raise ValueError for a placeholder that nothing provides."""
    prompts = [settings.prompt, settings.negative_prompt, *(region.prompt for region in customization.regions)]
    missing = missing_placeholders(" ".join(prompts), customization.tokens)
    if missing:
        known = ", ".join(customization.tokens) or "no learned token"
        raise ValueError(
            f"The prompt names {shortened(', '.join(missing))}, but the adapters given bring {known}; "
            "add the subject's file or reword the prompt."
        )


def plain_prompt(prompt: str, tokens: Mapping[str, Tensor]) -> str:
    """The prompt with placeholders for which there is no learned token as plain words: <my-dog> as my-dog."""
    for name in missing_placeholders(prompt, tokens):
        prompt = prompt.replace(name, name.strip("<>*"))
    return prompt


def notes_on_motion(captions: Sequence[str], frames: int, known: Sequence[str] = ()) -> list[str]:
    """What a user should hear before a motion is learned from these; known: the placeholders it will have."""
    notes = []
    unknown = unknown_placeholders(" ".join(captions), known)
    if unknown:
        notes.append(
            f"The captions name {shortened(', '.join(unknown))}, which a motion does not know and reads as "
            "plain letters: say what is seen, such as a dog."
        )
    if frames == 1:
        notes.append("With 1 frame a sample there is nothing that moves: the motion needs at least 2.")
    return notes


@torch.no_grad()
def sample_latents(
    unet: VideoUNet,
    context_cond: Tensor,
    context_uncond: Tensor,
    noise: Tensor,
    *,
    stack: AdapterStack | None = None,
    feature: Tensor | None = None,
    feature_strengths: tuple[float, float] = (0.0, 1.0),
    steps: int = 50,
    guidance: float = 9.0,
    callback: Callback | None = None,
) -> Tensor:
    """Latents [B, 4, F, h, w] from noise of that shape, float32.

    context_cond, context_uncond [B, 77, D] or [B, L, 77, D] (one row serves all B); feature [B or 1, D] or None, of the
    guidance image; feature_strengths: of the unconditional and the conditional half. Both halves go through the UNet as
    one batch, the unconditional one first and with a zero image; at guidance 1 there is only the conditional one.
    callback: see `diffusion.ddim_sample`.
    """
    device, batch = next(unet.parameters()).device, len(noise)
    halves = [context_cond] if guidance == 1 else [context_uncond, context_cond]
    expanded = [half.expand(batch, *half.shape[1:]) for half in halves]
    context = torch.cat(expanded).to(device, unet.dtype)  # [2B, 77, D] or [2B, L, 77, D]
    if stack is not None:
        stack = stack.to(device, unet.dtype)
        stack = stack.with_condition(*_conditions(feature, feature_strengths, batch, len(halves), device))
        stack = stack.for_halves(torch.tensor([0.0, 1.0][-len(halves) :]).repeat_interleave(batch))

    def predict(x: Tensor, t: int) -> Tensor:
        doubled = torch.cat([x] * len(halves)).to(unet.dtype)  # [2B, 4, F, h, w]
        timesteps = torch.full((len(doubled),), t, device=device)
        noise = predict_parts(unet, doubled, timesteps, context, stack, unet.config.stride)
        noise_of = noise.float().chunk(len(halves))
        return noise_of[0] + guidance * (noise_of[-1] - noise_of[0])

    return ddim_sample(predict, noise.to(device, torch.float32), steps, schedule_for(unet.config), callback)


def _conditions(
    feature: Tensor | None, strengths: tuple[float, float], batch: int, halves: int, device: torch.device
) -> tuple[Tensor | None, Tensor | float]:
    """Image features [2B, D] and their strengths [2B], the unconditional half first, as zero images."""
    if feature is None:
        return None, 1.0
    shown = feature.to(device).expand(batch, -1)
    features = torch.cat([torch.zeros_like(shown), shown][-halves:])
    return features, torch.tensor(strengths[-halves:], device=device).repeat_interleave(batch)


@torch.no_grad()
def invert(
    unet: VideoUNet,
    context: Tensor,
    latents: Tensor,
    steps: int = 50,
    callback: Callable[[int, int], None] | None = None,
    stack: AdapterStack | None = None,
) -> Tensor:
    """The noise [B, 4, F, h, w] that would sample these latents given the empty prompt's context: on the base alone, or
    with a stack. callback: see `diffusion.ddim_invert`."""
    device = next(unet.parameters()).device
    stack = None if stack is None else stack.to(device, unet.dtype)

    def predict(x: Tensor, t: int) -> Tensor:
        timesteps = torch.full((len(x),), t, device=device)
        return unet(x.to(unet.dtype), timesteps, context.expand(len(x), -1, -1), adapters=stack).float()

    return ddim_invert(predict, latents.to(device, torch.float32), steps, schedule_for(unet.config), callback)


@torch.no_grad()
def generate(
    unet: VideoUNet,
    encoders: Encoders,
    settings: SamplingSettings,
    customization: Customization = NOTHING,
    *,
    guidance_image: Tensor | None = None,
    prior_clip: Tensor | None = None,
    callback: Callback | None = None,
    report_for: Callable[[str], Callable[[int, int], None]] = lambda what: lambda done, total: None,
) -> Tensor:
    """Sample one video: frames [F, 3, H, W] in 0..1, float32, on the CPU. The same seed gives the same video.

    guidance_image [3, H, W] in 0..1 takes the place of the customization's own; prior_clip [F, 3, H, W], for a
    `prior_strength` above 0, is the clip whose motion the start remembers. callback: see `diffusion.ddim_sample`.
    report_for: takes what is counted, such as "Decoding frame", and gives what takes (done, of how many).
    Raises ValueError for a size the UNet cannot take, a placeholder that nothing provides, and a missing or
    misshapen prior clip.
    """
    check_matches(unet.config, encoders.text)
    check_frames(unet.config, settings.frames)
    shape = (1, unet.config.in_channels, settings.frames, *latent_size(unet, settings.height, settings.width))
    check_prompts(settings, customization)
    prompts = [settings.prompt, settings.negative_prompt, *(region.prompt for region in customization.regions)]
    cond, uncond, *own = encode(encoders.text, prompts, customization.tokens, weighted=True).split(1)
    regions = [Region(text, region.mask, region.apart) for text, region in zip(own, customization.regions, strict=True)]
    feature = customization.feature
    if guidance_image is not None:
        feature = encoders.image.encode(guidance_image[None])  # [1, D]
    release(encoders.text, encoders.image)  # for minutes or hours
    noise = offset_noise(shape, torch.Generator().manual_seed(settings.seed), settings.offset_noise)
    if settings.prior_strength > 0:
        tuned = [entry for entry in customization.entries if isinstance(entry.adapter, FrameAttention)]
        noise = mix_noise_prior(
            noise, _inverted(unet, encoders, settings, prior_clip, report_for, tuned).cpu(), settings.prior_strength
        )
    strength_uncond = settings.feature_strength_uncond
    latents = sample_latents(
        unet,
        cond,
        uncond,
        noise,
        stack=AdapterStack(customization.entries, regions=regions) if customization.acts else None,
        feature=feature,
        feature_strengths=(
            customization.feature_strength_uncond if strength_uncond is None else strength_uncond,
            settings.feature_strength_cond,
        ),
        steps=settings.steps,
        guidance=settings.guidance,
        callback=callback,
    )
    frames = rearrange(latents, "1 c f h w -> f c h w")
    video = _counted(
        encoders.vae.decode, frames, at_once(settings.height, settings.width), report_for("Decoding frame")
    )
    release(encoders.vae)
    return video.float().cpu()  # [F, 3, H, W]


def _counted(call: Callable[[Tensor], Tensor], frames: Tensor, few: int, report: Callable[[int, int], None]) -> Tensor:
    """What the call makes of the frames, a `few` at a time."""
    found, done = [], 0
    report(done, len(frames))
    for part in frames.split(few):
        found.append(call(part))
        done += len(part)
        report(done, len(frames))
    return torch.cat(found)


def _inverted(
    unet: VideoUNet,
    encoders: Encoders,
    settings: SamplingSettings,
    clip: Tensor | None,
    report_for: Callable[[str], Callable[[int, int], None]],
    tuned: Sequence[StackEntry],
) -> Tensor:
    """A clip's noise. tuned: what learned of the clip itself and so inverts it too, as Tune-A-Video does."""
    if clip is None:
        raise ValueError("A noise prior needs the clip it comes from; give one or set prior_strength to 0.")
    wanted = [settings.frames, 3, settings.height, settings.width]
    if list(clip.shape) != wanted:
        raise ValueError(
            f"The noise prior's clip has shape {list(clip.shape)} and the video {wanted}; crop and cut the clip alike."
        )
    few, report = at_once(settings.height, settings.width), report_for("Encoding frame")
    mean = _counted(lambda part: encoders.vae.encode(part).mean, clip, few, report)  # [F, 4, h, w]
    latents = rearrange(mean, "f c h w -> 1 c f h w")
    context = encoders.text.encode([""])
    release(encoders.text, encoders.vae)
    stack = AdapterStack(tuned) if tuned else None
    return invert(unet, context, latents, settings.steps, report_for("Inverting step"), stack)
