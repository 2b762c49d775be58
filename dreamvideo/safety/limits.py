"""Values from outside, a file's metadata or an argument, are checked where they are read.

What is beyond these limits is a mistake or an attack: it would take minutes or all memory before anything else told.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

MOST_SEED = 2**64 - 1  # of PyTorch and of ComfyUI


@dataclass(frozen=True)
class Limits:
    """Of a number that people give. open: the least itself lies outside."""

    least: float
    most: float
    whole: bool = False
    open: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number lies within; NaN never does."""
        return (self.least < value if self.open else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        """E.g. "a whole number of at least 1 and at most 512"."""
        if self.whole:
            most = "2^64 - 1" if self.most == MOST_SEED else f"{self.most:,}"
            return f"a whole number of at least {self.least} and at most {most}"
        return (
            f"a number {f'above {self.least:g} and at most' if self.open else f'from {self.least:g} to'} {self.most:g}"
        )


_COUNT = Limits(1, 10_000_000, whole=True)
_SHARE = Limits(0, 1)
_STRENGTH = Limits(-1000, 1000)
_SIDE = Limits(1, 8192, whole=True)
_RATE = Limits(0, 1000, open=True)
# By the one name that settings, options, run files and the inputs of nodes have for a number.
LIMITS: Mapping[str, Limits] = {
    "batch_size": Limits(1, 1024, whole=True),
    "count": Limits(1, 100_000, whole=True),
    "feature_strength_cond": _STRENGTH,
    "feature_strength_uncond": _STRENGTH,
    "fps": Limits(0.1, 1000),  # every kind of video file can tell these
    "frames": Limits(1, 512, whole=True),  # sampled at once; the base was trained with 32
    "guidance": _STRENGTH,
    "height": _SIDE,
    "learning_rate": _RATE,
    "memory": Limits(0, 1_000_000, open=True),
    "offset_noise": Limits(0, 1000),
    "p_image_drop": _SHARE,
    "p_text_drop": _SHARE,
    "preview_every": _COUNT,
    "prior_strength": _SHARE,
    "save_every": Limits(0, 10_000_000, whole=True),
    "seed": Limits(0, MOST_SEED, whole=True),
    "shift": Limits(0, 1024, whole=True),
    "snapshot_every": _COUNT,
    "steps": _COUNT,
    "token_learning_rate": _RATE,
    "token_steps": _COUNT,
    "warmup": Limits(0, 10_000_000, whole=True),
    "width": _SIDE,
}
# Of an architecture. The largest UNet of this family has 1280 channels, 4 levels and 2 blocks a level.
MOST_CHANNELS = 16384
MOST_LEVELS = 5
MOST_BLOCKS = 4  # of a level
MOST_LAYERS = 128  # of a CLIP tower
MOST_VOCABULARY = 1_000_000
# Directional marks that make a text read otherwise than it is written.
_OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def whole(what: str, value: object, most: int, least: int = 1) -> int:
    """`value`, after making sure that it is a whole number within the limits. Raises ValueError, saying what it is."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is a whole number from {least} to {most}, not {short(value)}")
    return value


def real(what: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """`value`, after making sure that it is a finite number within the limits."""
    number = value if type(value) is int or type(value) is float else math.nan
    if not least <= number <= most or abs(number) >= 1e300:
        within = "" if (least, most) == (-math.inf, math.inf) else f" from {least:g} to {most:g}"
        raise ValueError(f"{what} is a number{within}, not {short(value)}")
    return number


def line(what: str, value: object, most: int = 1000, breaks: bool = False) -> str:
    """`value`, after making sure that it is a text that shows as it is written; `breaks`: it may have several lines."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is a text, not {short(value)}")
    if len(value) > most:
        raise ValueError(f"{what} is a text of at most {most} characters, not {len(value)}")
    for character in value:
        if breaks and character in "\t\r\n":
            continue
        if character in _OVERRIDES or unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"{what} has a character in it that does not show ({character!a})")
    return value


def parsed(text: str) -> Any:
    """What JSON says. Raises ValueError for damaged JSON, whatever is wrong with it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def json_object(what: str, value: object) -> dict[str, Any]:
    """`value`, after making sure that it is a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is a JSON object, not {short(value)}")
    return value


def check_fields(config: type, values: Mapping[str, Any]) -> None:
    """Raise ValueError unless `values` has the fields of a configuration that need a value, and none besides."""
    unknown = sorted(set(values) - {item.name for item in fields(config)})
    if unknown:
        raise ValueError(f"{config.__name__} has no field named {', '.join(map(short, unknown[:3]))}")
    needed = [item.name for item in fields(config) if item.default is MISSING and item.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{config.__name__} needs {', '.join(missing)}")


def short(value: object) -> str:
    """A value out of a file as it may stand in a sentence: escaped, and cut off where it is long."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


def bare(text: str) -> str:
    """A tensor's name or a library's words as they may stand in a sentence: `short` without quotes, and longer."""
    return repr(text if len(text) <= 160 else text[:157] + "...")[1:-1]
