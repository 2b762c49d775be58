"""Learned tokens in prompts of the host's CLIP: `<my-dog>` in the text becomes its vectors among the host's tokens.

Nothing here imports ComfyUI; it relies on the format of its token lists alone:
{encoder: [[(id or vector, weight), ...]]}. Where a word has a vector for every layer that reads the text, these lists
hold their mean, and beside them, under `LAYERS`, lie as many of their like as there are layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..dreamvideo.encoders.clip import split_prompt
from ..dreamvideo.encoders.layered import at_layer, layers_of

# Single tokens of CLIP's vocabulary that nobody means: each stands for one placeholder while the host tokenises.
FILLERS = ("bnha", "phdlife", "ohwx", "qpr", "hta", "sks")


LAYERS = "dreamvideo_layers"


class PlaceholderTokenizer:
    """The host's tokenizer, which also knows placeholders: name -> vectors [n, D] or, one a layer, [L, n, D].

    All else is the host's own.
    """

    def __init__(self, host: Any, tokens: Mapping[str, Tensor]) -> None:
        self.host = host
        self.tokens = {name: rows if rows.ndim > 1 else rows[None] for name, rows in tokens.items()}

    def __getattr__(self, name: str) -> Any:
        if name == "host":  # asked for while unpickling or copying, when there is none yet
            raise AttributeError(name)
        return getattr(self.host, name)

    def clone(self) -> PlaceholderTokenizer:
        return self

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, list]:
        pieces = split_prompt(text, self.tokens)
        used = list(dict.fromkeys(piece for piece, learned in pieces if learned))
        if not used:
            return self.host.tokenize_with_weights(text, return_word_ids, **options)
        layers = layers_of({name: self.tokens[name] for name in used})
        if layers is None:
            return self._tokenize(text, pieces, used, self.tokens, return_word_ids, **options)
        mean = {name: rows.mean(0) if rows.ndim == 3 else rows for name, rows in self.tokens.items()}
        shown = self._tokenize(text, pieces, used, mean, return_word_ids, **options)
        own = (at_layer(self.tokens, layer) for layer in range(layers))
        return {**shown, LAYERS: [self._tokenize(text, pieces, used, each, return_word_ids, **options) for each in own]}

    def _tokenize(
        self,
        text: str,
        pieces: Sequence[tuple[str, bool]],
        used: Sequence[str],
        tokens: Mapping[str, Tensor],
        return_word_ids: bool,
        **options: Any,
    ) -> dict[str, list]:
        """tokens: name -> vectors [n, D] of those that are used."""
        free = [word for word in FILLERS if word not in text.lower()]
        if len(used) > len(free):
            raise ValueError(f"A prompt takes at most {len(free)} different placeholders, this one has {len(used)}.")
        words = dict(zip(used, free, strict=False))
        plain = "".join(
            f" {' '.join([words[piece]] * len(tokens[piece]))} " if learned else piece for piece, learned in pieces
        )
        found = self.host.tokenize_with_weights(plain, return_word_ids, **options)
        vectors = {self._id(word): tokens[name] for name, word in words.items()}
        return {encoder: _put_in(chunks, vectors) for encoder, chunks in found.items()}

    def _id(self, word: str) -> int:
        chunk = next(iter(self.host.tokenize_with_weights(word).values()))[0]
        return chunk[1][0]  # behind the start token


def _put_in(chunks: list[list[tuple]], vectors: Mapping[int, Tensor]) -> list[list[tuple]]:
    """Replace fillers by their vectors' rows, in turn."""
    seen = dict.fromkeys(vectors, 0)

    def replaced(item: tuple) -> tuple:
        token = item[0]
        if not isinstance(token, int) or token not in vectors:
            return item
        rows = vectors[token]
        row = rows[seen[token] % len(rows)]
        seen[token] += 1
        return (row, *item[1:])

    return [[replaced(item) for item in chunk] for chunk in chunks]
