"""Prompts with a text for every layer that reads it, on the host's CLIP and in its CONDITIONING.

The CONDITIONING stays what it is for every other node: the text with the mean of a word's vectors. Beside it lie the
texts of all layers, which the model reads as long as nobody has changed that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..placeholders import LAYERS


@dataclass(frozen=True, eq=False)
class LayeredText:
    """texts: states for each layer [1, L, T, D]; shown: the text of which they are the layers [1, T, D]."""

    texts: Tensor
    shown: Tensor

    def of(self, shown: Tensor) -> bool:
        """Whether they are still those of this text: it may have been zeroed, averaged, or made longer since."""
        return self.shown.shape == shown.shape and torch.equal(self.shown.to(shown), shown)


class _Layered:
    """What a CLIP becomes whose words have a vector a layer; so do its clones."""

    def clone(self, *given: Any, **options: Any) -> Any:
        clone = super().clone(*given, **options)  # pyright: ignore[reportAttributeAccessIssue]
        clone.__class__ = type(self)
        return clone

    def encode_from_tokens_scheduled(self, tokens: Any, *given: Any, **options: Any) -> Any:
        encode = super().encode_from_tokens_scheduled  # pyright: ignore[reportAttributeAccessIssue]
        found = encode(tokens, *given, **options)
        own = [encode(each, *given, **options) for each in tokens.get(LAYERS, ())]
        for index, (shown, values) in enumerate(found):
            if own:
                values[LAYERS] = LayeredText(torch.stack([each[index][0] for each in own], dim=1), shown)
        return found


def as_layered(clip: Any) -> None:
    """Make a CLIP, which is nobody else's yet, one that encodes a text for every layer."""
    if not isinstance(clip, _Layered):
        clip.__class__ = type("LayeredCLIP", (_Layered, type(clip)), {})


def texts_of(shown: Tensor | None, values: dict[str, Any]) -> Tensor | None:
    """The texts for all layers [1, L, T, D] that CONDITIONING holds beside the one it shows; None where it has none."""
    found = values.get(LAYERS)
    return found.texts if isinstance(found, LayeredText) and shown is not None and found.of(shown) else None
