"""What every layer of a network may read during one forward, and what it asks of adapters on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class BoundAdapters(Protocol):
    """Adapters ready for one forward. All must be pure: gradient checkpointing calls them again.

    norm_across_frames: whether residual blocks' norms are to take their statistics over all frames, see `Call`.
    """

    @property
    def norm_across_frames(self) -> bool: ...

    def enter(self, block: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The residual stream that enters a temporal block: `x` plus what adapters tell it of its frames.

        block: e.g. "input_blocks.1.2.transformer_blocks.0"; x [B, N, F, C] as for `add`.
        """
        ...

    def source(self, block: str, x: Tensor) -> Tensor:
        """What the self-attention of a spatial block takes keys and values from: `x`, or tokens of other frames too.

        block: e.g. "input_blocks.1.1.transformer_blocks.0"; x [B, F, N, C], normalised; the result [B, F, T, C].
        """
        ...

    def add(self, site: str, before: Tensor, after: Tensor, size: tuple[int, int], *, temporal: bool) -> Tensor:
        """The residual stream behind a sublayer: `after` plus whatever adapters sit at `site`.

        site: e.g. "input_blocks.1.1.transformer_blocks.0.attn2"; sublayers are attn1, attn2 and ff.
        before: the stream entering the sublayer (not normalised); after: before + sublayer(norm(before)).
        Both are [B, F, N, C], or [B, N, F, C] where `temporal`, with N = h*w of this level, row-major; size: (h, w).
        """
        ...

    def read(self, attend: Callable[[Tensor], Tensor], text: Tensor, size: tuple[int, int]) -> Tensor:
        """What a spatial block's cross-attention reads [B, F, N, C], where parts of the video read texts of their own.

        text: what it read in the prompt; attend: what all of it would read in other text states [B, T, D], or
        [B, L, T, D] as in a `Call`.
        """
        ...

    def add_over_time(self, site: str, before: Tensor, after: Tensor) -> Tensor:
        """What leaves a temporal convolution: `after` plus whatever adapters sit at `site`.

        site: e.g. "input_blocks.1.0.temopral_conv.conv1"; before: what the convolution takes, normalised and activated.
        Both are [B, C, F, h, w].
        """
        ...


class Watch(Protocol):
    """What looks on at a forward. It is called again, for the same, where gradient checkpointing computes again."""

    def see(self, site: str, attention: Any, x: Tensor, context: Tensor, size: tuple[int, int]) -> None:
        """A spatial block reads its text: x [B, F, N, C] by the `blocks.Attention` in context [B, T, D]; site as for
        `BoundAdapters.add`."""
        ...


def unfold_frames(x: Tensor, frames: int) -> Tensor:
    return rearrange(x, "(b f) c h w -> b c f h w", f=frames)


def fold_frames(x: Tensor) -> Tensor:
    return rearrange(x, "b c f h w -> (b f) c h w")


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Timesteps [B] -> [B, dim], cosines first, float32 whatever the model's dtype: the phase is up to 999 rad."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    phase = torch.outer(timesteps.float(), torch.pow(10000, -steps / half))
    return torch.cat([phase.cos(), phase.sin()], dim=1)


@dataclass(frozen=True)
class Call:
    """What every layer may read during one forward."""

    frames: int
    embedding: Tensor  # [B, E], of the timestep
    context: Tensor  # [B, T, D], one row a video; [B, L, T, D] with one for each spatial block
    adapters: BoundAdapters | None
    checkpointing: bool
    watch: Watch | None = None
    norm_across_frames: bool = False  # of residual blocks: whether a norm's statistics go over all frames of a video

    def through(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        """x [B*F, C, h, w] through a group norm and the layers behind it."""
        if not self.norm_across_frames:
            return layers(x)
        norm, *rest = layers
        x = fold_frames(norm(unfold_frames(x, self.frames)))
        for layer in rest:
            x = layer(x)
        return x

    def adapted(
        self, block: str, sublayer: str, before: Tensor, residual: Tensor, size: tuple[int, int], *, temporal: bool
    ) -> Tensor:
        """The residual stream behind a sublayer, with what adapters add there; see `BoundAdapters.add`."""
        after = before + residual
        if self.adapters is None:
            return after
        return self.adapters.add(f"{block}.{sublayer}", before, after, size, temporal=temporal)


def run(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    return cast(Tensor, checkpoint(layer, x, call, use_reentrant=False)) if call.checkpointing else layer(x, call)
