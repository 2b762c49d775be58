"""Text that came from elsewhere, made fit to be shown: what a user gave, what a file says of itself."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

SHOWN = 60  # characters of what a user gave that a sentence repeats
LONGEST_WORD = 1000  # that a sentence holds; a path of the file system's greatest length is cut in its middle
JOINERS = "\u200c\u200d"  # hold letters of some scripts, and emoji, together


def hidden(character: str) -> bool:
    """Whether a character steers what shows it or is not seen: control and format characters, lone surrogates."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS


def printable(text: str, encoding: str | None = None) -> str:
    """The text with hidden characters, and those that an encoding lacks, as JSON escapes them; lines stay lines."""
    return "".join(
        character if character == "\n" or not hidden(character) and _has(encoding, character) else _escaped(character)
        for character in text
    )


def quoted(value: Any) -> str:
    """What a user gave, in quotes for a sentence: the beginning of a long one, and its length."""
    text = str(value)
    shown = repr(printable(text[:SHOWN])).replace(r"\\u", r"\u")
    return shown if len(text) <= SHOWN else f"{shown[:-1]}...{shown[-1]} ({len(text):,} characters)"


def shortened(text: str) -> str:
    """The beginning of a text, for a sentence that goes on behind it."""
    shown = printable(text[:SHOWN])
    return shown if len(text) <= SHOWN else f"{shown}..."


def one_line(text: str) -> str:
    """A sentence of any origin as one line, in which no word is endless."""
    return re.sub(rf"\S{{{LONGEST_WORD + 1},}}", _cut_middle, " ".join(text.split()))


def _cut_middle(word: re.Match[str]) -> str:
    return f"{word[0][:SHOWN]}...{word[0][-SHOWN:]}"


def _has(encoding: str | None, character: str) -> bool:
    if encoding is None or character.isascii():
        return True
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
