"""Words with a vector for every layer that reads the text (P+, Voynov et al. 2023, arXiv 2303.09522).

Such a word's vectors are [L, n, D] where an ordinary one's are [n, D]; a text that holds it has states for each of the
L layers, [B, L, 77, D].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .protocols import TextEncoder


def encode(
    text: TextEncoder, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None, *, weighted: bool = False
) -> Tensor:
    """As `TextEncoder.encode`, for any tokens: [B, 77, D], or [B, L, 77, D] where one of them has a vector a layer.

    Layer by layer, so that each is read to the bit as an ordinary word of its vectors is.
    """
    tokens = tokens or {}
    layers = layers_of(tokens)
    if layers is None:
        return text.encode(prompts, tokens, weighted=weighted)
    return torch.stack(
        [text.encode(prompts, at_layer(tokens, layer), weighted=weighted) for layer in range(layers)], dim=1
    )


def layers_of(tokens: Mapping[str, Tensor]) -> int | None:
    """For how many layers the tokens have vectors of their own; None for ordinary ones.

    Raises ValueError where they differ.
    """
    found = {rows.shape[0] for rows in tokens.values() if rows.ndim == 3}
    if len(found) > 1:
        counts = " and ".join(map(str, sorted(found)))
        raise ValueError(f"The words have vectors for {counts} layers: they were learned on different bases.")
    return found.pop() if found else None


def at_layer(tokens: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    """The tokens as one layer reads them: placeholder -> [n, D]."""
    return {name: rows[layer] if rows.ndim == 3 else rows for name, rows in tokens.items()}
