"""Prompts as text: their placeholders, and the weights that brackets give to what stands in them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..safety.texts import hidden, quoted

PLACEHOLDER = re.compile(r"<[^<>\s]+>|(?<!\S)\*(?!\S)")  # what can only be meant as one: <name>, and the authors' *
LONGEST_PLACEHOLDER = 50  # characters
BRACKETS = 1.1  # the weight of (these) beside what stands around them
DEEPEST = 50  # brackets in brackets
# Noncharacters of Unicode stand for what is no bracket, and for placeholders, while brackets are read.
OPEN, CLOSE, SLOT = "\ufdd0", "\ufdd1", "\ufdd2"


class Piece(NamedTuple):
    """A stretch of a prompt: text or the name of a learned token, and the weight it has."""

    text: str
    learned: bool
    weight: float = 1.0


@functools.cache
def clip_tokenizer():
    """open_clip's tokenizer: CLIP's byte-pair vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def split_prompt(prompt: str, names: Iterable[str]) -> list[tuple[str, bool]]:
    """Cut a prompt at its placeholders: (piece, is a placeholder) in order.

    Names are matched exactly, the longest first. A name whose edge is a letter, digit or underscore ends there only
    where the word does; `<my-dog>` and `*` may touch anything (`<my-dog>'s`).
    """
    ordered = sorted(names, key=len, reverse=True)
    if not ordered:
        return [(prompt, False)]
    pieces = re.split("(" + "|".join(map(_pattern, ordered)) + ")", prompt)
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]


def _pattern(name: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", name[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
    return before + re.escape(name) + after


def unknown_placeholders(prompt: str, known: Iterable[str] = ()) -> list[str]:
    """Placeholders of a prompt that are none of the known ones."""
    known = set(known)
    return [name for name in dict.fromkeys(PLACEHOLDER.findall(prompt)) if name not in known]


def check_placeholder(name: str, taken: Iterable[str] = ()) -> None:
    """Raise ValueError unless `name` is unmistakable in a prompt: `<my-dog>`, or the authors' `*`.

    Refused are blanks, braces and characters that are not seen inside it, ordinary words and numbers, bare
    punctuation, tokens of the vocabulary, names in `taken` and those of more than 50 characters.
    """
    core = re.sub(r"[^\w-]+", "-", name[:LONGEST_PLACEHOLDER]).strip("-_")[:20] or "subject"
    advice = f"take a name such as <{core}>"
    if not name.strip():
        raise ValueError(f"The placeholder is empty; {advice}.")
    if len(name) > LONGEST_PLACEHOLDER:
        raise ValueError(f"The placeholder {quoted(name)} is longer than {LONGEST_PLACEHOLDER}; {advice}.")
    if re.search(r"\s|[{}]", name):
        raise ValueError(f"The placeholder {quoted(name)} has a blank or a brace inside; {advice}.")
    if any(map(hidden, name)):
        raise ValueError(f"The placeholder {quoted(name)} has a character inside that is not seen; {advice}.")
    if name in taken:
        another = advice.replace(">", "-2>")
        raise ValueError(f"The placeholder {quoted(name)} is already in use for another token; {another}.")
    if name == "*":
        return
    if all(part.isalpha() or part.isdigit() for part in re.split(r"[-'’]", name)):
        raise ValueError(f"The placeholder {quoted(name)} is an ordinary word that prompts may hold; {advice}.")
    if not any(character.isalnum() for character in name) or len(clip_tokenizer().encode(name)) == 1:
        raise ValueError(f"The placeholder {quoted(name)} clashes with a token of CLIP's vocabulary; {advice}.")


def read_weights(prompt: str, names: Iterable[str] = ()) -> list[Piece]:
    r"""A prompt's pieces with the weights that its brackets give, as ComfyUI reads them; `names`: its placeholders.

    (red) weighs 1.1 times as much as what stands around it, (red:1.4) 1.4 whatever stands around it, and \( and \) are
    brackets that weigh nothing. What does not close is text. ValueError for a weight that is no finite number, and for
    brackets more than 50 deep.
    """
    found = split_prompt(prompt.translate(dict.fromkeys(map(ord, (OPEN, CLOSE, SLOT)))), names)
    slots = iter([piece for piece, learned in found if learned])
    text = "".join(SLOT if learned else _without_escapes(piece) for piece, learned in found)
    pieces = []
    for stretch, weight in _weighted(text):
        for part in re.split(f"({SLOT})", stretch):
            if part == SLOT:
                pieces.append(Piece(next(slots), True, weight))
            elif part:
                pieces.append(Piece(part.replace(OPEN, "(").replace(CLOSE, ")"), False, weight))
    return pieces


def _without_escapes(text: str) -> str:
    return text.replace(r"\)", CLOSE).replace(r"\(", OPEN)


def _weighted(text: str) -> Iterator[tuple[str, float]]:
    """(stretch, weight) in order. Without recursion, so that depth is a matter of ours and not of Python's stack."""
    waiting: list[tuple[str, float, int]] = [(text, 1.0, 0)]  # (text, its weight, how deep in brackets); the last first
    while waiting:
        stretch, weight, depth = waiting.pop()
        groups = list(_groups(stretch))
        if groups == [stretch] and not _bracketed(stretch):
            yield stretch, weight
            continue
        if depth == DEEPEST:
            raise ValueError(rf"The prompt has more than {DEEPEST} brackets in brackets; \( is one without a weight.")
        for group in reversed(groups):
            if _bracketed(group):
                waiting.append((*_own_weight(group[1:-1], weight), depth + 1))
            else:
                waiting.append((group, weight, depth))


def _bracketed(group: str) -> bool:
    return len(group) > 1 and group[0] == "(" and group[-1] == ")"


def _groups(text: str) -> Iterator[str]:
    """What stands in outermost brackets, with them, and what stands between."""
    depth = start = 0
    for at, character in enumerate(text):
        if character == "(":
            if depth == 0 and at > start:
                yield text[start:at]
                start = at
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[start : at + 1]
                start = at + 1
    if start < len(text):
        yield text[start:]


def _own_weight(inner: str, around: float) -> tuple[str, float]:
    """What brackets hold, without the weight that it may name, and its weight."""
    before, colon, number = inner.rpartition(":")
    if not (colon and before):
        return inner, around * BRACKETS
    try:
        weight = float(number)
    except ValueError:
        return inner, around * BRACKETS
    if not math.isfinite(weight):
        raise ValueError(f"The weight {quoted(number)} in the prompt is no finite number; give one such as 1.2.")
    return before, weight
