"""`train subject` and `train motion`: an adapter file, its losses beside it, and a state to go on from."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from torch import Tensor

from ..encoders.prompts import check_placeholder
from ..media.clips import find_clips, find_masks
from ..media.folders import caption_of
from ..media.photographs import load_images
from ..media.writing import write_animation
from ..runs import Outcome, Reports, train_motion, train_subject
from ..safety.paths import check_writable, keep_apart
from ..training.drawing import NO_MASKS
from ..training.methods import SUBJECT_METHODS
from ..training.places import Run, beside, companions, preview_path
from .common import (
    ADAPTER,
    OUTPUT,
    base_files,
    base_options,
    cache_for,
    check_suffix,
    file_name,
    found_for,
    media_files,
    one_or_many,
    open_for,
    placeholder_of,
    training_size,
)
from .options import training_settings
from .run_files import run_file
from .terminal import Terminal


def subject(args: Namespace, terminal: Terminal) -> None:
    placeholder = placeholder_of(args)
    check_placeholder(placeholder)
    default = OUTPUT / f"{file_name(placeholder)}.safetensors"
    row = SUBJECT_METHODS[args.method]
    stages = ("token", row.stage) if row.token == "given" else (row.stage,)
    _check_out(args, default, stages, args.images)
    found = found_for(args)
    size = training_size(args, found)
    photos = load_images(one_or_many(args.images), size, with_masks=not args.no_masks, say=terminal.say)
    if args.mask_attention and not row.mask_attention and all(photo.mask is None for photo in photos):
        raise ValueError(NO_MASKS)
    base = open_for(args, terminal, found)
    outcome = train_subject(
        base,
        photos,
        placeholder=placeholder,
        class_word=args.class_word,
        method=args.method,
        out=args.out,
        default=default,
        restart=args.restart,
        cache=cache_for(args),
        reports=_reports(args, terminal, base.defaults.fps),
        token_settings={"steps": args.token_steps, "learning_rate": args.token_lr},
        **training_settings(args),
    )
    _tell(args, outcome, terminal, f"a {placeholder} ...")


def motion(args: Namespace, terminal: Terminal) -> None:
    default = OUTPUT / f"{file_name(Path(args.clips[0]).absolute().stem)}.safetensors"
    _check_out(args, default, ("motion",), [*args.clips, args.related])
    found = found_for(args)
    size = training_size(args, found)
    frames = args.frames or found.defaults.frames
    clips = find_clips(one_or_many(args.clips), frames, terminal.say)
    related = find_clips(args.related, frames, terminal.say) if args.related else []
    captions = [_caption(path, args.caption) for path in clips] + [_caption(path) for path in related]
    masks = [] if args.no_masks else find_masks([*clips, *related])
    base = open_for(args, terminal, found)
    outcome = train_motion(
        base,
        [*clips, *related],
        captions,
        masks=masks,
        related=len(related),
        size=size,
        frames=frames,
        fps=args.fps,
        placeholder=args.placeholder,
        class_word=args.class_word,
        method=args.method,
        out=args.out,
        default=default,
        restart=args.restart,
        cache=cache_for(args),
        reports=_reports(args, terminal, args.fps or base.defaults.fps),
        **training_settings(args),
    )
    _tell(args, outcome, terminal, captions[0])


def _check_out(args: Namespace, default: Path, stages: Sequence[str], media: Sequence[str | Path | None]) -> None:
    """Raise ValueError, before the base is loaded, for an --out that cannot be written or is read."""
    out = args.out or default
    check_suffix(out, ADAPTER)
    run = Run({}, dict.fromkeys(stages, args.steps or 1), bool(args.preview_every), bool(args.snapshot_every))
    files = companions(beside(out), run)
    check_writable(*files)
    if args.out:
        given = [] if args.config is None else [Path(args.config)]
        keep_apart(files, chain(given, base_files(args), media_files(media)))


def _reports(args: Namespace, terminal: Terminal, fps: float) -> Reports:
    """Progress on the terminal, previews as <out>.<stage>-<step>.gif, and the run file."""

    def preview(out: Path, stage: str, step: int, prompt: str, video: Tensor) -> None:
        path = preview_path(out, stage, step)
        write_animation(path, video, fps)
        terminal.say(f"Preview: {path}")

    def write_again(run: str, folder: Path) -> str:
        return run_file(args, run, folder)

    return Reports(
        terminal.stage,
        preview,
        lambda: terminal.sampling("preview"),
        terminal.counting,
        say=terminal.say,
        run_file=write_again,
    )


def _tell(args: Namespace, outcome: Outcome, terminal: Terminal, prompt: str) -> None:
    place = outcome.place
    if place is None:
        return
    if place.finished:
        steps = outcome.adapter.info.steps
        terminal.say(
            f"{place.out} is this training already, with its {'one step' if steps == 1 else f'{steps} steps'}: ask for "
            "more --steps to go on, or for another one with --restart."
        )
        return
    words = ["dreamvideo", "sample", prompt, "--adapter", str(place.out), *base_options(args)]
    terminal.say(f"Wrote {place.out}; try: {shlex.join(words)}")
    if place.states.exists():
        terminal.say(f"The same command with more --steps goes on from {place.states}; delete that if you will not.")


def _caption(path: Path, otherwise: str | None = None) -> str:
    caption = caption_of(path) or otherwise
    if not caption:
        raise ValueError(f"{path} has no caption; say what happens there with --caption or a .txt beside it.")
    return caption
