"""What the UNets are built of: residual blocks, attention, spatial and temporal transformers, temporal convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .call import Call, fold_frames, run, unfold_frames
from .config import NetworkConfig, UNetConfig

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

# A CPU's; what a layer makes of more is written to main memory and read again. Of narrower layers more fit.
TOKENS_IN_CACHE, WIDTH_IN_CACHE = 1024, 320


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
    """Two convolutions of every frame by itself, which learn of the timestep between them."""

    def __init__(self, config: NetworkConfig, channels: int, out_channels: int, ops, factory: dict) -> None:
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

    def forward(self, x: Tensor, call: Call) -> Tensor:
        embedding = self.emb_layers(call.embedding).repeat_interleave(call.frames, dim=0)  # [B*F, C]
        h = call.through(self.in_layers, x) + embedding[:, :, None, None]
        return self.skip_connection(x) + call.through(self.out_layers, h)


class VideoResBlock(ResBlock):
    """A residual block with convolutions over time behind it."""

    def __init__(self, config: UNetConfig, channels: int, out_channels: int, ops, factory: dict) -> None:
        super().__init__(config, channels, out_channels, ops, factory)
        self.temopral_conv = TemporalConv(config, out_channels, ops, factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        return self.temopral_conv(super().forward(x, call), call)


def in_pieces(layer: Callable[..., Tensor], rows: Tensor, *others: Tensor) -> Tensor:
    """A layer that takes rows of tokens [S, L, C] independently of one another; on a CPU it takes a few at a time.

    others: further things that it takes row by row, [S, ...].
    """
    if rows.device.type != "cpu":
        return layer(rows, *others)
    tokens = TOKENS_IN_CACHE * max(1, WIDTH_IN_CACHE // rows.shape[2])
    few = max(1, tokens // rows.shape[1])
    return torch.cat([layer(*pieces) for pieces in zip(*(each.split(few) for each in (rows, *others)), strict=True)])


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

    def forward(self, x: Tensor, context: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        """x [B, S, L, C] attends within its L tokens, or, all S*L of them as one row of queries, to context [B, T, D].

        The second way projects the context of a video once instead of once a frame. source [B, S, T, C]: what takes the
        place of the L tokens, row by row, where they are to attend to others.
        """
        if context is not None:
            return self._attend(x.flatten(1, 2), context).view_as(x)
        if source is not None and source is not x:
            return in_pieces(self._attend, x.flatten(0, 1), source.flatten(0, 1)).view_as(x)
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
            return call.adapted(self.site, sublayer, before, residual, size, temporal=self.temporal)

        def among(x: Tensor) -> Tensor:
            if call.adapters is None or self.temporal:
                return self.attn1(x)
            return self.attn1(x, source=call.adapters.source(self.site, x))

        def attend(x: Tensor, context: Tensor) -> Tensor:
            return self.attn2(x, self._own(context))

        def read(x: Tensor) -> Tensor:
            if call.watch is not None:
                call.watch.see(f"{self.site}.attn2", self.attn2, x, self._own(call.context), size)
            text = attend(x, call.context)
            return text if call.adapters is None else call.adapters.read(partial(attend, x), text, size)

        if self.temporal and call.adapters is not None:
            x = call.adapters.enter(self.site, x, size)
        x = adapted("attn1", x, among(self.norm1(x)))
        x = adapted("attn2", x, self.attn2(self.norm2(x)) if self.temporal else read(self.norm2(x)))
        return adapted("ff", x, self.ff(self.norm3(x)))

    def _own(self, context: Tensor) -> Tensor:
        return context if context.ndim == 3 else context[:, self.layer]


class SpatialTransformer(nn.Module):
    """Attention among the positions of one frame, and to the text."""

    def __init__(
        self, config: NetworkConfig, channels: int, heads: int, attention: AttentionFunction, ops, factory: dict
    ) -> None:
        super().__init__()
        self.norm = ops.GroupNorm(config.norm_groups, channels, eps=1e-6, **factory)
        self.proj_in = self._projection(channels, ops, factory)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, heads, config.context_dim, attention, ops, factory)]
        )
        self.proj_out = self._projection(channels, ops, factory)

    @staticmethod
    def _projection(channels: int, ops, factory: dict) -> nn.Module:
        return ops.Linear(channels, channels, **factory)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        height, width = x.shape[-2:]
        h = self._into(self.norm(x))  # [B*F, N, C]
        h = rearrange(h, "(b f) n c -> b f n c", f=call.frames)
        for block in self.transformer_blocks:
            h = block(h, (height, width), call)
        return x + self._out_of(rearrange(h, "b f n c -> (b f) n c"), height)

    def _into(self, x: Tensor) -> Tensor:
        return self.proj_in(rearrange(x, "bf c h w -> bf (h w) c"))

    def _out_of(self, h: Tensor, height: int) -> Tensor:
        return rearrange(self.proj_out(h), "bf (h w) c -> bf c h w", h=height)


class ConvolvedTransformer(SpatialTransformer):
    """The same with convolutions of one position as projections, as Stable Diffusion 1 has them."""

    @staticmethod
    def _projection(channels: int, ops, factory: dict) -> nn.Module:
        return ops.Conv2d(channels, channels, 1, **factory)

    def _into(self, x: Tensor) -> Tensor:
        return rearrange(self.proj_in(x), "bf c h w -> bf (h w) c")

    def _out_of(self, h: Tensor, height: int) -> Tensor:
        return self.proj_out(rearrange(h, "bf (h w) c -> bf c h w", h=height))


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


class Block(nn.ModuleList):
    """Layers in a row, each a unit of gradient checkpointing."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        for layer in self:
            x = run(layer, x, call)
        return x
