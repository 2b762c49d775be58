"""Options that are fields of a dataclass: their help is its docstring, their limits are those of all faces."""

from __future__ import annotations

import argparse
import math
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..defaults import EMBEDDED, FULL_SIZE
from ..safety.limits import LIMITS, Limits
from ..safety.texts import quoted
from ..training.settings import TrainingSettings

# Names of before, which stay: field -> option, and what the parsed arguments call it.
SHORT = {
    "batch_size": "batch",
    "learning_rate": "lr",
    "negative_prompt": "negative",
    "token_learning_rate": "token_lr",
}
METAVARS = {
    "fps": "RATE",
    "guidance": "SCALE",
    "height": "PIXELS",
    "learning_rate": "RATE",
    "memory": "GIB",
    "negative_prompt": "TEXT",
    "p_image_drop": "P",
    "p_text_drop": "P",
    "token_learning_rate": "RATE",
    "width": "PIXELS",
}


class Several(argparse.Action):
    """As "append", but what is given takes the default's place, which may be a run file's."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), values])


def add_field(parser: Any, settings: type, name: str, default: str, **options: Any) -> None:
    """The option --name of a field of a dataclass. default: what its help says of it."""
    kind = next(str(field.type) for field in fields(settings) if field.name == name)
    text = f"{said(settings)[name]} ({default})" if default else said(settings)[name]
    if kind.startswith("bool"):
        flag = option_of(name)
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        add_option(parser, name, text, **options)


def add_option(parser: Any, name: str, text: str, metavar: str | None = None, **options: Any) -> None:
    """The option --name, which has limits where all faces have them."""
    limits = LIMITS.get(name)
    if limits is not None:
        options.setdefault("type", number(limits))
    fallback = "N" if limits is not None and limits.whole else "X"
    flags = [option_of(name), *([option_of(SHORT[name])] if name in SHORT else [])]
    metavar = metavar or METAVARS.get(name, fallback)
    parser.add_argument(*flags, dest=SHORT.get(name, name), metavar=metavar, help=text, **options)


def option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def training_settings(args: Namespace) -> dict[str, Any]:
    """Field of `TrainingSettings` -> what the arguments say; None leaves it to the base."""
    return {field.name: getattr(args, SHORT.get(field.name, field.name), None) for field in fields(TrainingSettings)}


def number(limits: Limits) -> Callable[[str], float]:
    """Reads a number within limits. Its error says what it is not."""

    def read(text: str) -> float:
        value = _whole(text) if limits.whole else _real(text)
        if not limits.hold(value):
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not {limits}")
        return value

    return read


def _whole(text: str) -> float:
    return int(text) if text.isdecimal() and len(text) <= 20 else math.nan


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def said(settings: type) -> dict[str, str]:
    """Field -> the first sentence that a dataclass's docstring says of it: of "name: words" or "name, name: words"."""
    names = {field.name for field in fields(settings)}
    found: dict[str, list[str]] = {}
    about: tuple[str, ...] = ()
    for line in (settings.__doc__ or "").splitlines():
        head = re.match(r"\s*(\w+(?:, \w+)*): (.*)", line)
        if head and names.issuperset(head[1].split(", ")):
            about = tuple(head[1].split(", "))
            found |= {name: [head[2].strip()] for name in about}
        elif not line.strip():
            about = ()
        else:
            for name in about:
                found[name].append(line.strip())
    return {name: " ".join(lines).split(". ")[0].rstrip(".") for name, lines in found.items()}


def of_base(name: str) -> str:
    """What a base's own value is: in the full size and, where it differs, in the embedded one."""
    return _default(getattr(FULL_SIZE, name), getattr(EMBEDDED, name))


def of_stage(stage: str, name: str) -> str:
    """As `of_base`, of a stage's training."""
    return _default(getattr(FULL_SIZE.settings(stage), name), getattr(EMBEDDED.settings(stage), name))


def _default(full: Any, embedded: Any) -> str:
    return f"default: {_shown(full)}" + (f"; embedded base: {_shown(embedded)}" if embedded != full else "")


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value:g}"
