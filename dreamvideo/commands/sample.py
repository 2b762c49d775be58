"""`sample`: a prompt and adapters to a video file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from torch import Tensor

from ..adapter_files import check_fits, load_adapter
from ..base import Base
from ..checkpoints import fingerprint, same_base
from ..media import choose_frames, load_image, read_clip, write_animation, write_png, write_video
from ..sampling import Customization, customize, generate, latent_size
from .common import OUTPUT, file_name, open_for, writable
from .terminal import Terminal

VIDEOS, ANIMATIONS = (".mp4", ".mov", ".mkv"), (".gif", ".webp")


def sample(args: Namespace, terminal: Terminal) -> None:
    if not args.prompt.strip():
        raise ValueError("The prompt is empty; say what the video should show.")
    out = args.out or OUTPUT / f"{file_name(args.prompt)}-{args.seed or 0}.mp4"
    writable(out, (*VIDEOS, *ANIMATIONS, ""))
    base = open_for(args, terminal)
    prior_strength = args.prior_strength
    if args.prior_clip and prior_strength is None:
        prior_strength = 0.5
    settings = base.defaults.sampling(
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
    latent_size(base.unet, settings.height, settings.width)
    customization = _load_adapters(args, base)
    unnamed = [name for name in customization.tokens if name not in args.prompt]
    if unnamed:
        terminal.say(f"The prompt does not name {', '.join(unnamed)}; the subject may be missing from the video.")
    if args.negative.strip() and settings.guidance == 1:
        terminal.say("At a guidance of 1 --negative does nothing; give --guidance above 1, or leave it out.")
    if settings.frames == 1 and any(entry.adapter.config.kind == "motion" for entry in customization.entries):
        terminal.say("One frame shows no motion; give --frames of at least 2, or leave the motion's adapter out.")
    prior = None
    if args.prior_clip:
        clip = read_clip(args.prior_clip, (settings.height, settings.width))
        prior = clip.pixels(choose_frames(clip.times, settings.frames, settings.fps, start=0.0).indices)
    video = generate(
        base.unet,
        base.encoders,
        settings,
        customization,
        guidance_image=load_image(args.guidance_image) if args.guidance_image else None,
        prior_clip=prior,
        callback=terminal.sampling("sampling"),
    )
    if not video.isfinite().all():
        raise ValueError(f"The video came out as NaN in {base.dtype}: sample with --dtype float32 or other settings.")
    _write_video(out, video, settings.fps)
    terminal.say(f"Wrote {out}")


def _load_adapters(args: Namespace, base: Base) -> Customization:
    loaded, strengths = [], []
    weights = None if args.other_base else fingerprint(base.unet)
    for given in args.adapter:
        path, strength = _with_strength(given)
        loaded.append(load_adapter(path, base.unet.config))
        strengths.append(strength)
        try:
            check_fits(loaded[-1].info, base.unet.config, weights, same_base=same_base)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return customize(loaded, strengths)


def _with_strength(given: str) -> tuple[Path, float]:
    path, at, strength = given.rpartition("@")
    if not at or Path(given).exists():  # a name may hold an @
        return Path(given), 1.0
    try:
        return Path(path), float(strength)
    except ValueError:
        return Path(given), 1.0


def _write_video(out: Path, video: Tensor, fps: float) -> None:
    suffix = out.suffix.lower()
    if suffix in VIDEOS:
        write_video(out, video, fps)
    elif suffix in ANIMATIONS:
        write_animation(out, video, fps)
    else:
        for index, frame in enumerate(video):
            write_png(out / f"{index:04d}.png", frame)
