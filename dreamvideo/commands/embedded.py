"""`demo` and `nano`: the whole method on the embedded base or on another, and the embedded base itself."""

from __future__ import annotations

from argparse import Namespace

from .. import demo as demonstration
from ..base import Base
from ..training import Callbacks
from .common import open_for, placeholder_of, writable
from .terminal import Terminal


def demo(args: Namespace, terminal: Terminal) -> None:
    if (args.images is None) != (args.video is None):
        raise ValueError("The demo with your own media needs both --images and --video.")
    own = args.images is not None
    if not own and (args.base or args.unet):
        raise ValueError("The toy world goes with the embedded base; with another one give --images and --video.")
    writable(args.out / "report.json", (".json",))
    base = open_for(args, terminal)
    material = _own_material(args, base) if own else demonstration.toy_material(base.defaults.frames)
    demonstration.run(
        base,
        material,
        args.out,
        seed=args.seed,
        quick=args.quick,
        report=terminal.say,
        callbacks_for=lambda stage: Callbacks(progress=terminal.training(stage)),
    )
    terminal.say(f"Wrote {args.out}; look at {args.out / 'sheet.png'}")


def _own_material(args: Namespace, base: Base) -> demonstration.Material:
    placeholder = placeholder_of(args)
    prompt = args.prompt or f"a {placeholder} moving on the grass"
    if placeholder not in prompt:
        raise ValueError(f"The prompt {prompt!r} does not name the subject; put {placeholder} in it.")
    base.encoders.text.check_placeholder(placeholder)
    return demonstration.own_material(
        args.images,
        args.video,
        base.defaults,
        placeholder=placeholder,
        class_word=args.class_word,
        motion_caption=args.caption,
        prompt=prompt,
    )


def nano_train(args: Namespace, terminal: Terminal) -> None:
    from ..nano import command

    weights = args.out / "weights"
    command.train(args.out, weights)
    terminal.say(f"Wrote the base {weights}; try it with --base {weights}")


def nano_evaluate(args: Namespace, terminal: Terminal) -> None:
    from ..nano import command

    command.evaluate(args.base, args.count, args.seed, report=terminal.say)
