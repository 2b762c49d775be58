"""`demo` and `nano`: the whole method on the embedded base or on another, and the embedded base itself."""

from __future__ import annotations

from argparse import Namespace

from ..training import Callbacks
from .common import open_for, placeholder_of, writable
from .terminal import Terminal


def demo(args: Namespace, terminal: Terminal) -> None:
    from .. import demo as demonstration

    own = {name: getattr(args, name) for name in ("images", "video", "class_word", "caption", "prompt")}
    missing = [f"--{name.replace('_', '-')}" for name, value in own.items() if value is None]
    if missing and len(missing) < len(own):
        raise ValueError(f"The demo with your own media also needs {', '.join(missing)}.")
    if missing and (args.base or args.unet):
        raise ValueError(f"The toy world goes with the embedded base; with another one give {', '.join(missing)}.")
    writable(args.out / "report.json", (".json",))
    base = open_for(args, terminal)
    if missing:
        material = demonstration.toy_material(base.defaults.frames)
    else:
        placeholder = placeholder_of(args)
        if placeholder not in args.prompt:
            raise ValueError(f"The prompt {args.prompt!r} does not name the subject; put {placeholder} in it.")
        prompt = args.prompt.replace("{", "{{").replace("}", "}}").replace(placeholder, "{}")
        material = demonstration.own_material(
            args.images, args.video, base.defaults, placeholder, args.class_word, args.caption, prompt
        )
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


def nano_train(args: Namespace, terminal: Terminal) -> None:
    from ..nano import command

    weights = args.out / "weights"
    command.train(args.out, weights)
    terminal.say(f"Wrote the base {weights}; try it with --base {weights}")


def nano_evaluate(args: Namespace, terminal: Terminal) -> None:
    from ..nano import command

    command.evaluate(args.base, args.count, args.seed, report=terminal.say)
