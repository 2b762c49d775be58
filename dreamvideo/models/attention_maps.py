"""Where the words of a text are read: cross-attention maps, gathered beside a forward for a loss on them.

Break-A-Scene (Avrahami et al. 2023, arXiv 2305.16311, section 3.3) pulls the map of a subject's word to the subject's
mask, in the layers of 16 x 16 places.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from .blocks import Attention
from .config import NetworkConfig
from .resizing import area_average

SIDE = 16  # of the maps that count, as nearly as a video's size allows
MASK_ATTENTION = 0.01  # weight of their loss, the paper's


class AttentionMaps:
    """A `blocks.Watch` that keeps the maps of one level: of those that read the text, the one of nearly 16 x 16 places.

    size: (h, w) of the latents.
    """

    def __init__(self, size: tuple[int, int], config: NetworkConfig) -> None:
        last = len(config.attention_levels) - 1  # where the middle block reads the text, too
        reading = [level for level, reads in enumerate(config.attention_levels) if reads or level == last]
        sizes = [(size[0] >> level, size[1] >> level) for level in reading]
        self.size = min(sizes, key=lambda each: abs(math.log2(each[0] * each[1] / SIDE**2)))
        self.maps: dict[str, Tensor] = {}  # site -> [B, F*N, T]

    def see(self, site: str, attention: Attention, x: Tensor, context: Tensor, size: tuple[int, int]) -> None:
        if size == self.size:
            found = attention_map(attention, x, context)
            self.maps.setdefault(site, found)

    def of(self, places: Tensor) -> Tensor:
        """Where the words at places [B, T] (bool) are read, over all layers: [B, 1, F, h, w], at most 1."""
        mean = torch.stack(list(self.maps.values())).mean(0)  # [B, F*N, T]
        own = (mean * places.to(mean.device, mean.dtype)[:, None]).sum(-1)  # [B, F*N]
        found = own / own.amax(1, keepdim=True).clamp(min=1e-8)
        return rearrange(found, "b (f h w) -> b 1 f h w", h=self.size[0], w=self.size[1])


def attention_map(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """How much each place of x [B, F, N, C] reads of each word of context [B, T, D], mean over heads: [B, F*N, T].

    What scaled_dot_product_attention keeps to itself, computed once more in float32.
    """
    q, k = (
        projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2).float()  # [B, heads, length, head_dim]
        for projected in (attention.to_q(x.flatten(1, 2)), attention.to_k(context))
    )
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)


def mask_attention_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """Squared error of maps [B, 1, F, h, w] against masks [B, 1, F, H, W] in 0..1, averaged down to them; a scalar."""
    wanted = area_average(mask.float(), (maps.shape[-2], maps.shape[-1]))  # [B, 1, F, h, w]
    return (maps - wanted.to(maps)).square().mean()
