"""Where fine-tuning changes a base most: the paper's way of choosing where adapters go (section 3.2, Figure 4).

All spatial weights are fine-tuned on a subject, or all temporal ones on a motion, and the relative changes of each kind
of layer are averaged. Kinds that change most are where an adapter has most to do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..models.config import transformer_sites
from ..models.deltas import WeightDelta
from ..models.network import VideoUNet

CATEGORIES = ("cross-attention", "self-attention", "feed-forward", "other")


def category(name: str, temporal: bool) -> str:
    """The kind of layer of a weight. Both attentions of a temporal transformer are self-attention over time."""
    if ".attn2." in name:
        return "self-attention" if temporal else "cross-attention"
    if ".attn1." in name:
        return "self-attention"
    return "feed-forward" if ".ff." in name else "other"


@torch.no_grad()
def relative_changes(unet: VideoUNet, delta: WeightDelta) -> dict[str, float]:
    """Category -> mean of |delta| / |W| over its weights, both Euclidean norms; only categories that occur.

    Weights that are zero in the base have no relative change and are left out.
    """
    temporal = tuple(f"{site.name}." for site in transformer_sites(unet.config) if site.kind == "temporal")
    weights = unet.state_dict()
    changes: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    for name, change in delta.changes().items():
        size = weights[name].float().norm().item()
        if size:
            changes[category(name, name.startswith(temporal))].append(change.float().norm().item() / size)
    return _means(changes)


def _means(values: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: sum(each) / len(each) for name, each in values.items() if each}
