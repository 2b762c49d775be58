"""What the UNet is built of: residual blocks, attention, spatial and temporal transformers, temporal convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import UNetConfig

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


TOKENS_IN_CACHE = 1024  # a CPU's; what a layer makes of more is written to main memory and read again


class BoundAdapters(Protocol):
    """Adapters ready for one forward. All must be pure: gradient checkpointing calls them again."""

    def enter(self, block: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The residual stream that enters a temporal block: `x` plus what adapters tell it of its frames.

        block: e.g. "input_blocks.1.2.transformer_blocks.0"; x [B, N, F, C] as for `add`.
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

    def see(self, site: str, attention: Attention, x: Tensor, context: Tensor, size: tuple[int, int]) -> None:
        """A spatial block reads its text: x [B, F, N, C] by `attention` in context [B, T, D]; site as for `add`."""
        ...


@dataclass(frozen=True)
class Call:
    """What every layer may read during one forward."""

    frames: int
    embedding: Tensor  # [B, E], of the timestep
    context: Tensor  # [B, T, D], one row a video; [B, L, T, D] with one for each spatial block
    adapters: BoundAdapters | None
    checkpointing: bool
    watch: Watch | None = None


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Timesteps [B] -> [B, dim], cosines first, float32 whatever the model's dtype: the phase is up to 999 rad."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    phase = torch.outer(timesteps.float(), torch.pow(10000, -steps / half))
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def unfold_frames(x: Tensor, frames: int) -> Tensor:
    return rearrange(x, "(b f) c h w -> b c f h w", f=frames)


def fold_frames(x: Tensor) -> Tensor:
    return rearrange(x, "b c f h w -> (b f) c h w")


class TemporalConv(nn.Module):
    """Four convolutions over time behind every residual block, zero-padded: the only source of temporal order."""

    site = ""  # its full module name; the UNet fills it in

    def __init__(self, config: UNetConfig, channels: int, ops, factory: dict) -> None:
        super().__init__()

        def stage(*middle: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                ops.GroupNorm(config.norm_groups, channels, **factory),
                nn.SiLU(),
                *middle,
                ops.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), **factory),
            )

        self.conv1 = stage()
        self.conv2 = stage(nn.Dropout(config.dropout))
        self.conv3 = stage(nn.Dropout(config.dropout))
        self.conv4 = stage(nn.Dropout(config.dropout))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        h = unfold_frames(x, call.frames)  # [B, C, F, H, W]: statistics go across frames
        for name, stage in self.named_children():
            *first, conv = cast(nn.Sequential, stage)
            for layer in first:
                h = layer(h)
            after = conv(h)
            h = after if call.adapters is None else call.adapters.add_over_time(f"{self.site}.{name}", h, after)
        return x + fold_frames(h)


class ResBlock(nn.Module):
    def __init__(self, config: UNetConfig, channels: int, out_channels: int, ops, factory: dict) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            ops.GroupNorm(config.norm_groups, channels, **factory),
            nn.SiLU(),
            ops.Conv2d(channels, out_channels, 3, padding=1, **factory),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), ops.Linear(config.embed_dim, out_channels, **factory))
        self.out_layers = nn.Sequential(
            ops.GroupNorm(config.norm_groups, out_channels, **factory),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            ops.Conv2d(out_channels, out_channels, 3, padding=1, **factory),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else ops.Conv2d(channels, out_channels, 1, **factory)
        )
        self.temopral_conv = TemporalConv(config, out_channels, ops, factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        embedding = self.emb_layers(call.embedding).repeat_interleave(call.frames, dim=0)  # [B*F, C]
        h = self.in_layers(x) + embedding[:, :, None, None]
        return self.temopral_conv(self.skip_connection(x) + self.out_layers(h), call)


def in_pieces(layer: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A layer that takes rows of tokens [S, L, C] independently of one another; on a CPU it takes a few at a time."""
    if rows.device.type != "cpu":
        return layer(rows)
    return torch.cat([layer(few) for few in rows.split(max(1, TOKENS_IN_CACHE // rows.shape[1]))])


class Attention(nn.Module):
    def __init__(
        self, width: int, heads: int, context_dim: int | None, attention: AttentionFunction, ops, factory: dict
    ) -> None:
        super().__init__()
        source = width if context_dim is None else context_dim
        self.heads = heads
        self.attention = attention
        self.to_q = ops.Linear(width, width, bias=False, **factory)
        self.to_k = ops.Linear(source, width, bias=False, **factory)
        self.to_v = ops.Linear(source, width, bias=False, **factory)
        self.to_out = nn.Sequential(ops.Linear(width, width, **factory))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, S, L, C] attends within its L tokens, or, all S*L of them as one row of queries, to context [B, T, D].

        The second way projects the context of a video once instead of once a frame.
        """
        if context is not None:
            return self._attend(x.flatten(1, 2), context).view_as(x)
        if x.shape[2] == 1:  # a softmax over one token is one, whatever queries and keys are
            return self.to_out(self.to_v(x))
        return in_pieces(lambda rows: self._attend(rows, rows), x.flatten(0, 1)).view_as(x)

    def _attend(self, tokens: Tensor, source: Tensor) -> Tensor:
        """tokens [S, L, C] to source [S, T, D] -> [S, L, C]"""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [S, heads, length, head_dim]
            for projected in (self.to_q(tokens), self.to_k(source), self.to_v(source))
        )
        h = self.attention(q, k, v)
        return self.to_out(h.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, width: int, hidden: int, ops, factory: dict) -> None:
        super().__init__()
        self.proj = ops.Linear(width, 2 * hidden, **factory)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int, ops, factory: dict) -> None:
        super().__init__()
        # The original keeps a dropout of probability 0 at index 1.
        self.net = nn.Sequential(
            GEGLU(width, 4 * width, ops, factory), nn.Identity(), ops.Linear(4 * width, width, **factory)
        )

    def forward(self, x: Tensor) -> Tensor:
        return in_pieces(self.net, x.flatten(0, -2)[:, None]).view_as(x)  # every token a row of its own


class TransformerBlock(nn.Module):
    """Three pre-norm sublayers on x [B, S, L, C]; with a `context_dim` the second one reads the text."""

    site = ""  # its full module name; the UNet fills it in
    layer = 0  # of a spatial one, its number among them; the UNet fills it in

    def __init__(
        self, width: int, heads: int, context_dim: int | None, attention: AttentionFunction, ops, factory: dict
    ) -> None:
        super().__init__()
        self.temporal = context_dim is None
        self.attn1 = Attention(width, heads, None, attention, ops, factory)
        self.ff = FeedForward(width, ops, factory)
        self.attn2 = Attention(width, heads, context_dim, attention, ops, factory)
        self.norm1 = ops.LayerNorm(width, **factory)
        self.norm2 = ops.LayerNorm(width, **factory)
        self.norm3 = ops.LayerNorm(width, **factory)

    def forward(self, x: Tensor, size: tuple[int, int], call: Call) -> Tensor:
        def adapted(sublayer: str, before: Tensor, residual: Tensor) -> Tensor:
            after = before + residual
            if call.adapters is None:
                return after
            return call.adapters.add(f"{self.site}.{sublayer}", before, after, size, temporal=self.temporal)

        def attend(x: Tensor, context: Tensor) -> Tensor:
            return self.attn2(x, self._own(context))

        def read(x: Tensor) -> Tensor:
            if call.watch is not None:
                call.watch.see(f"{self.site}.attn2", self.attn2, x, self._own(call.context), size)
            text = attend(x, call.context)
            return text if call.adapters is None else call.adapters.read(partial(attend, x), text, size)

        if self.temporal and call.adapters is not None:
            x = call.adapters.enter(self.site, x, size)
        x = adapted("attn1", x, self.attn1(self.norm1(x)))
        x = adapted("attn2", x, self.attn2(self.norm2(x)) if self.temporal else read(self.norm2(x)))
        return adapted("ff", x, self.ff(self.norm3(x)))

    def _own(self, context: Tensor) -> Tensor:
        return context if context.ndim == 3 else context[:, self.layer]


class SpatialTransformer(nn.Module):
    """Attention among the positions of one frame, and to the text."""

    def __init__(self, config: UNetConfig, channels: int, attention: AttentionFunction, ops, factory: dict) -> None:
        super().__init__()
        heads = channels // config.head_dim
        self.norm = ops.GroupNorm(config.norm_groups, channels, eps=1e-6, **factory)
        self.proj_in = ops.Linear(channels, channels, **factory)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, heads, config.context_dim, attention, ops, factory)]
        )
        self.proj_out = ops.Linear(channels, channels, **factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        height, width = x.shape[-2:]
        h = self.proj_in(rearrange(self.norm(x), "bf c h w -> bf (h w) c"))
        h = rearrange(h, "(b f) n c -> b f n c", f=call.frames)
        for block in self.transformer_blocks:
            h = block(h, (height, width), call)
        h = self.proj_out(rearrange(h, "b f n c -> (b f) n c"))
        return x + rearrange(h, "bf (h w) c -> bf c h w", h=height)


class TemporalTransformer(nn.Module):
    """Attention among the frames at one position. Both attentions are self-attention, without positional encoding."""

    def __init__(
        self, config: UNetConfig, channels: int, heads: int, attention: AttentionFunction, ops, factory: dict
    ) -> None:
        super().__init__()
        width = heads * config.head_dim
        self.norm = ops.GroupNorm(config.norm_groups, channels, eps=1e-6, **factory)
        self.proj_in = ops.Conv1d(channels, width, 1, **factory)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads, None, attention, ops, factory)])
        self.proj_out = ops.Conv1d(width, channels, 1, **factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        # Kernel 1 asks nothing of the order of positions: the projections take them as they lie.
        height, width = x.shape[-2:]
        x = unfold_frames(x, call.frames)  # [B, C, F, H, W]: the norm's statistics go across frames
        h = self.proj_in(rearrange(self.norm(x), "b c f h w -> b c (f h w)"))
        h = rearrange(h, "b c (f n) -> b n f c", f=call.frames).contiguous()
        for block in self.transformer_blocks:
            h = block(h, (height, width), call)
        h = self.proj_out(rearrange(h, "b n f c -> b c (n f)"))
        return fold_frames(x + rearrange(h, "b c (h w f) -> b c f h w", h=height, w=width))


class Downsample(nn.Module):
    def __init__(self, channels: int, ops, factory: dict) -> None:
        super().__init__()
        self.op = ops.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, ops, factory: dict) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def run(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    return cast(Tensor, checkpoint(layer, x, call, use_reentrant=False)) if call.checkpointing else layer(x, call)


class Block(nn.ModuleList):
    """Layers in a row, each a unit of gradient checkpointing."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        for layer in self:
            x = run(layer, x, call)
        return x
