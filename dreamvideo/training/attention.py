"""A loss on where a subject's word is read, in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.attention_maps import MASK_ATTENTION, AttentionMaps, mask_attention_loss
from .drawing import Batch


def attention_loss(maps: AttentionMaps, batch: Batch, places: Mapping[str, Tensor]) -> Tensor | float:
    """How far the word is read beside the subject's mask, over the samples that have both, as the loss weighs it.

    places: caption -> where the word stands, bool [77].
    """
    assert batch.subjects is not None
    masks, telling = batch.subjects
    words = torch.stack([places[caption] for caption in batch.captions])  # [B, 77]
    telling = telling & words.any(1)
    if not telling.any():
        return 0.0
    found = maps.of(words)  # [B, 1, F, h, w]
    wanted = masks.to(found.device)
    return MASK_ATTENTION * mask_attention_loss(found[telling.to(found.device)], wanted[telling.to(found.device)])
