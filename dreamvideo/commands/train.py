"""`train subject` and `train motion`: an adapter file, its losses beside it, and a state to go on from."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter_files import LoadedAdapter
from ..base import Base
from ..defaults import fitted
from ..files import keep_apart, write_text
from ..fingerprint import fingerprint
from ..media import Photo, caption_of, find_clips, load_images, read_motion, write_animation, write_png
from ..media_folders import frame_files
from ..methods import MOTION_METHODS, SUBJECT_METHODS, Method, for_clips
from ..pictures import loss_plot
from ..prompts import check_placeholder
from ..sampling import customize, generate, notes_on_motion, plain_prompt
from ..stages import train_method, train_subject
from ..training import Callbacks, TrainingResult, TrainingSettings
from ..training_data import digest, encode_clips
from .common import (
    ADAPTER,
    OUTPUT,
    base_files,
    check_suffix,
    file_name,
    media_files,
    one_or_many,
    open_for,
    placeholder_of,
    training_size,
)
from .results import Place, Run, check_result, claimed, companions, losses_paths, preview_path
from .terminal import Terminal


def subject(args: Namespace, terminal: Terminal) -> None:
    placeholder = placeholder_of(args)
    check_placeholder(placeholder)
    default = OUTPUT / f"{file_name(placeholder)}.safetensors"
    row = SUBJECT_METHODS[args.method]
    stages = ("token", row.trains) if row.token == "given" else (row.trains,)
    _check_out(args, default, stages, args.images)
    base = open_for(args, terminal)
    size = training_size(args, base)
    photos = load_images(one_or_many(args.images), size, with_masks=not args.no_masks, say=terminal.say)
    captions = [photo.caption or f"a {placeholder}" for photo in photos]
    method = fitted(row, base.unet.config)
    shared = _overrides(args)
    if method.trains == "token":  # its one stage is the one that --steps and --lr mean
        args.token_steps, args.token_lr = args.token_steps or args.steps, args.token_lr or args.lr
    token = base.defaults.settings("token", **{**shared, "steps": args.token_steps, "learning_rate": args.token_lr})
    own = token if method.trains == "token" else base.defaults.settings_for(method, **shared)
    seen = digest(part for photo, text in zip(photos, captions, strict=True) for part in _seen(photo, text))
    about = _about(base, method, own, seen, placeholder, args.class_word)
    if len(stages) > 1:
        about |= {f"token_{name}": value for name, value in {**token.deciding(), "steps": token.steps}.items()}
    terminal.say(f"Learning {placeholder} from {len(photos)} photographs, in {_counted(len(stages), 'stage')}.")
    with claimed(args.out, default, Run(about, own.steps, stages, bool(own.preview_every)), args.restart) as place:
        if _told_finished(place, own.steps, terminal):
            return
        result = train_subject(
            base.unet,
            base.encoders,
            [photo.image for photo in photos],
            [photo.mask for photo in photos],
            captions,
            placeholder=placeholder,
            class_word=args.class_word,
            method=method,
            token_settings=token,
            identity_settings=own,
            callbacks_for=lambda stage: _callbacks(terminal, base, stage, captions[0], size, place.out),
            state_folder=place.states,
        )
        _write(place, result.stopped, result.result, result.losses)
    _tell(place, terminal, f"a {placeholder} ...")


def motion(args: Namespace, terminal: Terminal) -> None:
    source = one_or_many(args.clips)
    default = OUTPUT / f"{file_name(Path(args.clips[0]).absolute().stem)}.safetensors"
    _check_out(args, default, ("motion",), [*args.clips, args.related])
    base = open_for(args, terminal)
    size = training_size(args, base)
    frames, fps = args.frames or base.defaults.frames, args.fps or base.defaults.fps
    clips = find_clips(source, frames, terminal.say)
    method = fitted(for_clips(MOTION_METHODS[args.method], len(clips)), base.unet.config)
    related = find_clips(args.related, frames, terminal.say) if args.related else []
    captions = [_caption(path, args.caption) for path in clips] + [_caption(path) for path in related]
    settings = base.defaults.settings_for(
        method, **_overrides(args), p_text_drop=args.p_text_drop, p_image_drop=args.p_image_drop
    )
    seen = digest([*map(_contents, [*clips, *related]), *captions])
    about = _about(base, method, settings, seen, args.placeholder, args.class_word)
    about |= {"height": size[0], "width": size[1], "frames": frames, "fps": fps}
    sources = f"{len(clips)} clips" if len(clips) > 1 else clips[0].name
    terminal.say(f"Learning a motion from {sources}, {frames} frames at {fps:g} a second.")
    for note in notes_on_motion(captions, frames, known=[args.placeholder] if method.token != "none" else []):
        terminal.say(note)
    run = Run(about, settings.steps, ("motion",), bool(settings.preview_every))
    with claimed(args.out, default, run, args.restart) as place:
        if _told_finished(place, settings.steps, terminal):
            return
        result = train_method(
            base.unet,
            base.encoders.text,
            encode_clips(_one_by_one([*clips, *related], size, frames, fps, terminal), captions, base.encoders, frames),
            method,
            placeholder=args.placeholder,
            class_word=args.class_word,
            settings=settings,
            callbacks=_callbacks(terminal, base, "motion", captions[0], size, place.out, frames),
            state_path=place.states / "motion.safetensors",
            resume=True,
        )
        _write(place, result.stopped, result, {"motion": result.losses})
    _tell(place, terminal, captions[0])


def _check_out(args: Namespace, default: Path, stages: Sequence[str], media: Sequence[str | Path | None]) -> None:
    """Raise ValueError, before the base is loaded, for an --out that cannot be written or is read."""
    out = args.out or default
    check_suffix(out, ADAPTER)
    preview_steps = (args.steps or 1) if args.preview_every else 0
    check_result(out, stages, preview_steps)
    if args.out:
        keep_apart(companions(out, stages, preview_steps), chain(base_files(args), media_files(media)))


def _about(
    base: Base, method: Method, settings: TrainingSettings, seen: str, placeholder: str, class_word: str
) -> dict[str, Any]:
    """What makes a training this one."""
    named = {"placeholder": placeholder, "class_word": class_word}
    return {"method": method.name, **named, **settings.deciding(), "data": seen, "base": fingerprint(base.unet)}


def _seen(photo: Photo, caption: str) -> tuple[Tensor | str, ...]:
    """What is learned from a photograph."""
    return photo.image, "" if photo.mask is None else photo.mask, caption


def _contents(clip: Path) -> str:
    """A digest of a clip's file, or of the frames of its folder."""
    found = hashlib.blake2b(digest_size=16)
    for path in frame_files(clip) if clip.is_dir() else [clip]:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def _told_finished(place: Place, steps: int, terminal: Terminal) -> bool:
    if place.finished:
        terminal.say(
            f"{place.out} is this training already, with its {_counted(steps, 'step')}: ask for more --steps to go on, "
            "or for another one with --restart."
        )
    return place.finished


def _write(place: Place, stopped: bool, result: TrainingResult | None, losses: Mapping[str, Sequence[float]]) -> None:
    """The adapter first, then what goes with it."""
    if not stopped:
        result.save(place.out)
    _write_losses(place.out, losses)
    if stopped:
        raise KeyboardInterrupt


def _tell(place: Place, terminal: Terminal, prompt: str) -> None:
    terminal.say(f'Wrote {place.out}; try: dreamvideo sample "{prompt}" --adapter {place.out}')
    if place.states.exists():
        terminal.say(f"The same command with more --steps goes on from {place.states}; delete that if you will not.")


def _counted(count: int, what: str) -> str:
    words = {1: "one", 2: "two"}
    return f"{words.get(count, count)} {what}{'s' * (count != 1)}"


def _caption(path: Path, otherwise: str | None = None) -> str:
    caption = caption_of(path) or otherwise
    if not caption:
        raise ValueError(f"{path} has no caption; say what happens there with --caption or a .txt beside it.")
    return caption


def _one_by_one(
    paths: Sequence[Path], size: tuple[int, int], frames: int, fps: float, terminal: Terminal
) -> Iterator[Tensor]:
    """The pixels [N, 3, H, W] of each clip, read when they are asked for."""
    for path in paths:
        clip = read_motion(path, size, frames, fps)
        if clip.note:
            terminal.say(f"{path.name}: {clip.note}")
        yield clip.pixels()


def _overrides(args: Namespace) -> dict[str, Any]:
    return {
        "steps": args.steps,
        "learning_rate": args.lr,
        "batch_size": args.batch,
        "seed": args.seed,
        "preview_every": args.preview_every,
        "gradient_checkpointing": args.gradient_checkpointing,
        "memory": args.memory,
    }


def _callbacks(
    terminal: Terminal,
    base: Base,
    stage: str,
    prompt: str,
    size: tuple[int, int],
    out: Path,
    frames: int | None = None,
) -> Callbacks:
    """Progress on the terminal, and previews of the first caption as <out>.<stage>-<step>.gif."""

    def preview(trained: LoadedAdapter) -> None:
        shown = plain_prompt(prompt, trained.tokens)
        settings = base.defaults.sampling(shown, height=size[0], width=size[1], frames=frames)
        path = preview_path(out, stage, trained.info.steps)
        video = generate(
            base.unet, base.encoders, settings, customize([trained]), callback=terminal.sampling("preview")
        )
        write_animation(path, video, settings.fps)
        terminal.say(f"Preview: {path}")

    return Callbacks(progress=terminal.training(stage), preview=preview, say=terminal.say)


def _write_losses(out: Path, losses: Mapping[str, Sequence[float]]) -> None:
    rows = [f"{stage},{step},{loss!r}" for stage, values in losses.items() for step, loss in enumerate(values, start=1)]
    table, plot = losses_paths(out)
    write_text(table, "\n".join(["stage,step,loss", *rows]) + "\n")
    write_png(plot, loss_plot(losses))
