"""Run files: what options a command had, as flat TOML, by one name each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..safety.limits import bare
from ..safety.paths import check_readable
from ..safety.texts import hidden, quoted

MOST_BYTES = 1 << 20


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TOML file says. Raises ValueError, naming the file, for one that is not readable, UTF-8 or TOML."""
    check_readable(path)
    size = os.path.getsize(path)
    if size > MOST_BYTES:
        raise ValueError(f"{path} is no run file: it has {size:,} bytes, and a run file has at most {MOST_BYTES:,}.")
    try:
        return parse_toml(Path(path).read_bytes().decode("utf-8-sig"))  # Windows' editors begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no run file: it is not text in UTF-8.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no run file: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """What TOML says. Raises ValueError for damaged TOML, whatever is wrong with it."""
    try:
        import tomllib  # here: few commands read a run file, and Python 3.10 has its ancestor only
    except ModuleNotFoundError:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]  # where it is needed it is required
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its TOML is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"its TOML is damaged: {bare(str(error).rstrip('.'))}.") from None


def toml_text(values: Mapping[str, Any]) -> str:
    """Values as a line each, in their order; those of None are left out.

    Of texts, truths, numbers and lists of them. What does not show, or steers what shows it, is written escaped.
    """
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None)


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return repr(value).lower()
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value).encode("utf-8", "replace").decode()  # names of files may hold what is no character
        return "".join(f"\\U{ord(c):08X}" if hidden(c) else c for c in json.dumps(text, ensure_ascii=False))
    raise ValueError(f"A run file holds texts and numbers, not {quoted(value)}.")
