"""Values from outside, a file's metadata or an argument, are checked where they are read.

What is beyond these limits is a mistake or an attack: it would take minutes or all memory before anything else told.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

# Of the numbers that people give, by the name that the command line has for them.
MOST: Mapping[str, float] = {
    "batch": 1024,
    "count": 100_000,
    "feature-strength-cond": 1000,
    "feature-strength-uncond": 1000,
    "guidance": 1000,
    "height": 8192,
    "lr": 1000,
    "memory": 1_000_000,
    "preview-every": 10_000_000,
    "steps": 10_000_000,
    "token-lr": 1000,
    "token-steps": 10_000_000,
    "width": 8192,
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
