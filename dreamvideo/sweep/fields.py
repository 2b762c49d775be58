"""Values out of a plan's TOML, each looked at by its name: what is no such value is told in one sentence."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..safety.limits import LIMITS, line, short
from ..safety.names import check_name

SWITCHES = ("masked", "normalize_mask", "noisier", "gradient_checkpointing", "no_masks", "by_base")
TEXTS = {"negative_prompt": 2000}
SHORT = {"batch": "batch_size", "lr": "learning_rate", "negative": "negative_prompt", "token_lr": "token_learning_rate"}


class Fields:
    """One table of a plan. where: how sentences name it; folder: from which its relative paths are seen."""

    def __init__(self, where: str, values: object, folder: Path) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{where} is a table, not {short(values)}.")
        self.where, self.folder = where, folder
        self.values: dict[str, Any] = dict(values)
        self.known: list[str] = []

    def take(self, name: str, default: Any = None) -> Any:
        """A value as it stands there; it counts as known."""
        self.known.append(name)
        return self.values.pop(name, default)

    def text(self, name: str, default: str | None = None, most: int = 1000) -> str:
        value = self.take(name, default)
        if value is None:
            raise ValueError(f"{self.where} lacks {name}.")
        return self._line(name, value, most)

    def name(self, name: str, default: str | None = None) -> str:
        """A text that can be a part of a file's name everywhere."""
        value = self.text(name, default)
        if not value or value.startswith("."):
            raise ValueError(f"{self.where}: {name} is {short(value)}, which cannot name a file; begin with a letter.")
        try:
            check_name(value)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error
        return value

    def texts(self, name: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """A list of texts, or one."""
        value = self.take(name, list(default))
        many = value if isinstance(value, list) else [value]
        return tuple(self._line(name, each, 1000) for each in many)

    def paths(self, name: str) -> tuple[str, ...]:
        """Absolute paths, of a list or of one."""
        return tuple(os.path.abspath(self.folder / each) for each in self.texts(name))

    def path(self, name: str) -> str | None:
        value = self.take(name)
        return None if value is None else os.path.abspath(self.folder / self._line(name, value, 4000))

    def number(self, name: str, default: float | None = None) -> Any:
        """A number within the limits that all faces have for this name."""
        value = self.take(name, default)
        return None if value is None else self.within(name, value)

    def options(self, allowed: Iterable[str]) -> dict[str, Any]:
        """Those of the allowed options that stand there, by their full names."""
        found = {}
        for name in allowed:
            names = [name, *(other for other, full in SHORT.items() if full == name)]
            self.known += names
            for given in names:
                value = self.values.pop(given, self.values.pop(given.replace("_", "-"), None))
                if value is not None:
                    found[name] = self._option(name, value)
        return found

    def done(self) -> None:
        """Raises ValueError for what is left: no such value is known here."""
        for name in self.values:
            near = difflib.get_close_matches(name, self.known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.known)}."
            raise ValueError(f"{self.where} has {short(name)[1:-1]}, which means nothing there; {hint}")

    def _option(self, name: str, value: Any) -> Any:
        if name in SWITCHES:
            if not isinstance(value, bool):
                raise ValueError(f"{self.where}: {name} is true or false, not {short(value)}.")
            return value
        return self._line(name, value, TEXTS[name]) if name in TEXTS else self.within(name, value)

    def within(self, name: str, value: Any) -> float:
        """A number that lies within the limits of this name."""
        limits = LIMITS[name]
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or (limits.whole and not isinstance(value, int)) or not limits.hold(value):
            raise ValueError(f"{self.where}: {name} is {limits}, not {short(value)}.")
        return value

    def _line(self, name: str, value: Any, most: int) -> str:
        try:
            return line(f"{self.where}: {name}", value, most)
        except ValueError as error:
            raise ValueError(f"{error}.") from error


def tables(where: str, value: object, folder: Path) -> list[Fields]:
    """The tables of a list such as [[subjects]]."""
    if not isinstance(value, list):
        raise ValueError(f"{where} is a list of tables, not {short(value)}; begin each with [[{where.split()[-1]}]].")
    return [Fields(f"{where} number {index}", each, folder) for index, each in enumerate(value, start=1)]


def different(where: str, names: Sequence[str]) -> None:
    """Raises ValueError for two equal names; on some systems large and small letters are one."""
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in seen:
            raise ValueError(
                f"{where} are named {short(seen[name.casefold()])} and {short(name)}; name each its own way."
            )
        seen[name.casefold()] = name
