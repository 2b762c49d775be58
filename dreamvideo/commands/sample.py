"""`sample`: a prompt and adapters to a video file."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

from torch import Tensor

from ..base import FoundBase
from ..customizing import Customization, customize
from ..files.adapter_info import check_fits
from ..files.adapters import load_adapter
from ..files.fingerprint import fingerprint, same_base
from ..files.unet_file import UNetFile
from ..media.clips import read_clip
from ..media.frame_folders import check_frames_writable, write_frames
from ..media.photographs import load_image
from ..media.times import choose_frames
from ..media.writing import write_animation, write_video
from ..safety.locks import reserved
from ..safety.paths import check_writable, keep_apart
from ..sampling import SamplingSettings, check_prompts, generate, latent_size
from .common import OUTPUT, base_files, check_suffix, file_name, found_for, open_for
from .regions import given_adapter, limits_of, region_prompt
from .terminal import Terminal

VIDEOS, ANIMATIONS = (".mp4", ".mov", ".mkv"), (".gif", ".webp")


def sample(args: Namespace, terminal: Terminal) -> None:
    if not args.prompt.strip():
        raise ValueError("The prompt is empty; say what the video should show.")
    with nullcontext(args.out) if args.out else reserved(_default_name(args)) as out:
        _check_out(out, args)
        _write_video(out, *_sampled(args, terminal))
    terminal.say(f"Wrote {out}")


def _sampled(args: Namespace, terminal: Terminal) -> tuple[Tensor, float]:
    """The video [F, 3, H, W] and its frames a second. Everything is looked at before the base is read."""
    found = found_for(args)
    settings = _settings(args, found)
    customization = _load_adapters(args, found.unet, settings)
    check_prompts(settings, customization)
    guide = load_image(args.guidance_image, terminal.say) if args.guidance_image else None
    prior = _prior(args, settings, terminal)
    _tell_what_has_no_effect(args, settings, customization, terminal)
    base = open_for(args, terminal, found)
    video = generate(
        base.unet,
        base.encoders,
        settings,
        customization,
        guidance_image=guide,
        prior_clip=prior,
        callback=terminal.sampling("sampling"),
        report_for=terminal.counting,
    )
    if not video.isfinite().all():
        raise ValueError(f"The video came out as NaN in {base.dtype}: sample with --dtype float32 or other settings.")
    return video, settings.fps


def _settings(args: Namespace, found: FoundBase) -> SamplingSettings:
    prior_strength = args.prior_strength
    if args.prior_clip and prior_strength is None:
        prior_strength = 0.5
    settings = found.defaults.sampling(
        args.prompt,
        negative_prompt=args.negative,
        frames=args.frames,
        height=args.height,
        width=args.width,
        fps=args.fps,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        feature_strength_cond=args.feature_strength_cond,
        feature_strength_uncond=args.feature_strength_uncond,
        prior_strength=prior_strength,
    )
    latent_size(found.unet, settings.height, settings.width)
    return settings


def _prior(args: Namespace, settings: SamplingSettings, terminal: Terminal) -> Tensor | None:
    """The clip whose inverted noise the start remembers, [F, 3, H, W]."""
    if not args.prior_clip:
        return None
    clip = read_clip(args.prior_clip, (settings.height, settings.width))
    if clip.note:
        terminal.say(clip.note)
    return clip.pixels(choose_frames(clip.times, settings.frames, settings.fps, start=0.0).indices)


def _tell_what_has_no_effect(
    args: Namespace, settings: SamplingSettings, customization: Customization, terminal: Terminal
) -> None:
    prompts = " ".join([args.prompt, *(region.prompt for region in customization.regions)])
    unnamed = [name for name in customization.tokens if name not in prompts]
    if unnamed:
        terminal.say(f"The prompt does not name {', '.join(unnamed)}; the subject may be missing from the video.")
    if args.negative.strip() and settings.guidance == 1:
        terminal.say("At a guidance of 1 --negative does nothing; give --guidance above 1, or leave it out.")
    if settings.frames == 1 and any(entry.adapter.config.kind == "motion" for entry in customization.entries):
        terminal.say("One frame shows no motion; give --frames of at least 2, or leave the motion's adapter out.")


def _default_name(args: Namespace) -> Path:
    """E.g. output/a-my-dog-is-dancing-my-dog-dance@0.8-0.mp4: prompt, adapters with other strengths than 1, seed."""
    adapters = [(given.path.stem, given.strength) for given in map(given_adapter, args.adapter)]
    names = "-".join(file_name(stem) + (f"@{strength:g}" if strength != 1 else "") for stem, strength in adapters)
    prompt, names = (text.encode()[:80].decode(errors="ignore") for text in (file_name(args.prompt), names))
    return OUTPUT / f"{'-'.join(filter(None, (prompt, names, str(args.seed or 0))))}.mp4"


def _check_out(out: Path, args: Namespace) -> None:
    """Raise ValueError, before the base is loaded, where the video cannot be written or would replace what is read."""
    check_suffix(out, (*VIDEOS, *ANIMATIONS, ""))
    adapters = [given_adapter(given).path for given in args.adapter]
    given = [path for path in (args.prior_clip, args.guidance_image, *adapters) if path is not None]
    within = [] if out.suffix else [folder for path in given for folder in Path(os.path.realpath(path)).parents]
    keep_apart([out], chain(given, within, base_files(args)))
    if out.suffix:
        check_writable(out)
    else:
        check_frames_writable(out)


def _load_adapters(args: Namespace, unet: UNetFile, settings: SamplingSettings) -> Customization:
    loaded, strengths, limits = [], [], []
    weights = None if args.other_base or not args.adapter else fingerprint(unet.tensors)
    for given in args.adapter:
        named = given_adapter(given)
        path = named.path
        loaded.append(load_adapter(path, unet.config))
        strengths.append(named.strength)
        limits.append(limits_of(named, settings))
        try:
            check_fits(loaded[-1].info, unet.config, weights, same_base=same_base)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return customize(loaded, strengths, limits, [region_prompt(each, settings) for each in args.region])


def _write_video(out: Path, video: Tensor, fps: float) -> None:
    suffix = out.suffix.lower()
    if suffix in VIDEOS:
        write_video(out, video, fps)
    elif suffix in ANIMATIONS:
        write_animation(out, video, fps)
    else:
        write_frames(out, video)
