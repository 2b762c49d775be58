"""`train subject` and `train motion`: an adapter file, its losses beside it, and a state to go on from."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter_files import LoadedAdapter
from ..base import Base
from ..defaults import fitted
from ..files import write_text
from ..media import caption_of, find_clips, load_images, read_motion, write_animation, write_png
from ..methods import MOTION_METHODS, SUBJECT_METHODS, for_clips
from ..pictures import loss_plot
from ..prompts import check_placeholder
from ..sampling import customize, generate, notes_on_motion, plain_prompt
from ..stages import train_method, train_subject
from ..training import Callbacks
from ..training_data import encode_clips
from .common import ADAPTER, OUTPUT, file_name, one_or_many, open_for, placeholder_of, training_size, writable
from .terminal import Terminal


def subject(args: Namespace, terminal: Terminal) -> None:
    placeholder = placeholder_of(args)
    check_placeholder(placeholder)
    out = writable(args.out or OUTPUT / f"{file_name(placeholder)}.safetensors", ADAPTER)
    base = open_for(args, terminal)
    size = training_size(args, base)
    photos = load_images(one_or_many(args.images), size, with_masks=not args.no_masks)
    captions = [photo.caption or f"a {placeholder}" for photo in photos]
    method = fitted(SUBJECT_METHODS[args.method], base.unet.config)
    shared = _overrides(args)
    if method.trains == "token":  # its one stage is the one that --steps and --lr mean
        args.token_steps, args.token_lr = args.token_steps or args.steps, args.token_lr or args.lr
    token = base.defaults.settings("token", **{**shared, "steps": args.token_steps, "learning_rate": args.token_lr})
    stages = "two stages" if method.token == "given" else "one stage"
    terminal.say(f"Learning {placeholder} from {len(photos)} photographs, in {stages}.")
    with _resumable(out, args.restart) as states:
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
            identity_settings=base.defaults.settings_for(method, **shared),
            callbacks_for=lambda stage: _callbacks(terminal, base, stage, captions[0], size, out),
            state_folder=states,
        )
        _write_losses(out, result.losses)
        if result.stopped:
            raise KeyboardInterrupt
        result.result.save(out)
    terminal.say(f'Wrote {out}; try: dreamvideo sample "a {placeholder} ..." --adapter {out}')


def motion(args: Namespace, terminal: Terminal) -> None:
    source = one_or_many(args.clips)
    first = Path(args.clips[0])
    out = writable(args.out or OUTPUT / f"{file_name(first.stem)}.safetensors", ADAPTER)
    base = open_for(args, terminal)
    size = training_size(args, base)
    frames, fps = args.frames or base.defaults.frames, args.fps or base.defaults.fps
    clips = find_clips(source, frames)
    method = fitted(for_clips(MOTION_METHODS[args.method], len(clips)), base.unet.config)
    related = find_clips(args.related, frames) if args.related else []
    captions = [_caption(path, args.caption) for path in clips] + [_caption(path) for path in related]
    settings = base.defaults.settings_for(
        method, **_overrides(args), p_text_drop=args.p_text_drop, p_image_drop=args.p_image_drop
    )
    sources = f"{len(clips)} clips" if len(clips) > 1 else clips[0].name
    terminal.say(f"Learning a motion from {sources}, {frames} frames at {fps:g} a second.")
    for note in notes_on_motion(captions, frames, known=[args.placeholder] if method.token != "none" else []):
        terminal.say(note)
    with _resumable(out, args.restart) as states:
        result = train_method(
            base.unet,
            base.encoders.text,
            encode_clips(_one_by_one([*clips, *related], size, frames, fps, terminal), captions, base.encoders, frames),
            method,
            placeholder=args.placeholder,
            class_word=args.class_word,
            settings=settings,
            callbacks=_callbacks(terminal, base, "motion", captions[0], size, out, frames),
            state_path=states / "motion.safetensors",
            resume=True,
        )
        _write_losses(out, {"motion": result.losses})
        if result.stopped:
            raise KeyboardInterrupt
        result.save(out)
    terminal.say(f'Wrote {out}; try: dreamvideo sample "{captions[0]}" --adapter {out}')


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


@contextmanager
def _resumable(out: Path, restart: bool) -> Iterator[Path]:
    """The folder of a training's states, beside its result; gone when the training is done.

    Ctrl-C at any moment inside says what is kept.
    """
    folder = out.with_suffix(".state")
    if restart:
        _remove_states(folder)
    try:
        yield folder
    except KeyboardInterrupt:
        if any(folder.glob("[!.]*.safetensors")):
            kept = f"its state is kept in {folder}, and the same command goes on from there"
        else:
            kept = "there was no state to keep yet, and the same command begins anew"
        raise KeyboardInterrupt(f"Training was stopped: {kept}.") from None
    _remove_states(folder)


def _remove_states(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with suppress(OSError):  # never there, or with something of the user's in it
        folder.rmdir()


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
        path = out.with_name(f"{out.stem}.{stage}-{trained.info.steps:05d}.gif")
        video = generate(
            base.unet, base.encoders, settings, customize([trained]), callback=terminal.sampling("preview")
        )
        write_animation(path, video, settings.fps)
        terminal.say(f"Preview: {path}")

    return Callbacks(progress=terminal.training(stage), preview=preview, say=terminal.say)


def _write_losses(out: Path, losses: Mapping[str, Sequence[float]]) -> None:
    rows = [f"{stage},{step},{loss!r}" for stage, values in losses.items() for step, loss in enumerate(values, start=1)]
    write_text(out.with_suffix(".losses.csv"), "\n".join(["stage,step,loss", *rows]) + "\n")
    write_png(out.with_suffix(".losses.png"), loss_plot(losses))
