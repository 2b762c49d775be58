"""`demo` and `nano`: the whole method on the embedded base or on another, and the embedded base itself."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ..defaults import Defaults
from ..encoders.prompts import check_placeholder
from ..nano import demo as demonstration
from ..runs import Reports
from ..safety.paths import keep_apart
from ..safety.texts import quoted
from .common import OUTPUT, base_files, found_for, media_files, open_for, output_folder, placeholder_of
from .terminal import Terminal


def demo(args: Namespace, terminal: Terminal) -> None:
    check_media(args)
    with output_folder(args.out, OUTPUT / "demo", demonstration.FILES) as out:
        keep_apart((out / name for name in demonstration.FILES), chain(own_files(args), base_files(args)))
        found = found_for(args)
        material = material_of(args, found.defaults)
        demonstration.run(
            open_for(args, terminal, found),
            material,
            out,
            seed=args.seed,
            quick=args.quick,
            report=terminal.say,
            reports=Reports(terminal.stage, say=terminal.say),
        )
    terminal.say(f"Wrote {out}; look at {out / 'sheet.png'}")


def check_media(args: Namespace) -> None:
    """Raise ValueError, before anything is loaded, for media that do not make a whole or lack where they are needed."""
    if (args.images is None) != (args.video is None):
        raise ValueError("Your own media are both --images and --video.")
    if args.images is None and (args.base or args.unet):
        raise ValueError("The toy world goes with the embedded base; with another one give --images and --video.")


def own_files(args: Namespace) -> Iterator[Path]:
    """The media of the arguments."""
    return media_files([args.images, args.video])


def material_of(args: Namespace, defaults: Defaults) -> demonstration.Material:
    """The media of the arguments, or the toy world's where there are none."""
    if args.images is None:
        return demonstration.toy_material(defaults.frames)
    placeholder = placeholder_of(args)
    prompt = args.prompt or f"a {placeholder} moving on the grass"
    if placeholder not in prompt:
        raise ValueError(f"The prompt {quoted(prompt)} does not name the subject; put {placeholder} in it.")
    check_placeholder(placeholder)
    return demonstration.own_material(
        args.images,
        args.video,
        defaults,
        placeholder=placeholder,
        class_word=args.class_word,
        motion_caption=args.caption,
        prompt=prompt,
    )


def nano_train(args: Namespace, terminal: Terminal) -> None:
    from ..nano import command

    weights = args.out / "weights"
    command.train(args.out, weights, device=args.device)
    terminal.say(f"Wrote the base {weights}; try it with --base {weights}")


def nano_gate(args: Namespace, terminal: Terminal) -> None:
    from ..nano import command

    command.gate(args.out, args.size, report=terminal.say)


def nano_evaluate(args: Namespace, terminal: Terminal) -> None:
    from ..nano import command

    command.evaluate(args.base, args.count, args.seed, report=terminal.say)
