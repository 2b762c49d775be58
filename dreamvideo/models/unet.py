"""The ModelScope text-to-video UNet: a 2-D UNet whose every stage is followed by a module that mixes frames.

Frames are folded into the batch, [B*F, C, H, W]; temporal modules unfold them. Module names are the key names of the
original checkpoint (`temopral_conv` is spelt so there), so its state dict loads as it is. Adapters are an argument of
`forward`: the UNet offers them every sublayer of every transformer block and owns none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..safety.limits import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, check_fields, real, whole

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
TOKENS_IN_CACHE = 1024  # a CPU's; what a layer makes of more is written to main memory and read again


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of the UNet; the defaults are ModelScope 1.7B's.

    `dim_mult` and `attention_levels` have one entry a level, finest level first. Attention heads are `head_dim` wide
    everywhere, C // head_dim of them, except in the temporal transformer behind the first convolution, which has
    `first_heads` and so an inner width of its own.
    """

    in_channels: int = 4
    out_channels: int = 4
    dim: int = 320
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    head_dim: int = 64
    first_heads: int = 8
    context_dim: int = 1024
    norm_groups: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        self._check_numbers()
        if len(self.dim_mult) != len(self.attention_levels):
            raise ValueError(
                f"UNetConfig needs one attention flag a level, got {len(self.attention_levels)} flags "
                f"for {len(self.dim_mult)} levels."
            )
        for channels in (self.dim, *self.channels):
            if channels % self.norm_groups or channels % self.head_dim:
                raise ValueError(
                    f"UNetConfig: {channels} channels must divide by {self.norm_groups} (norm groups) "
                    f"and by head_dim {self.head_dim}."
                )

    def _check_numbers(self) -> None:
        """Raise ValueError for what no network of this family has, before one is built of it."""
        for name in ("in_channels", "out_channels", "dim", "head_dim", "first_heads", "context_dim", "norm_groups"):
            whole(f"UNetConfig: {name}", getattr(self, name), MOST_CHANNELS)
        whole("UNetConfig: res_blocks", self.res_blocks, MOST_BLOCKS)
        real("UNetConfig: dropout", self.dropout, 0, 1)
        if not isinstance(self.dim_mult, (tuple, list)) or not isinstance(self.attention_levels, (tuple, list)):
            raise ValueError("UNetConfig: dim_mult and attention_levels are lists with an entry a level")
        whole("UNetConfig: the number of levels", len(self.dim_mult), MOST_LEVELS)
        if not all(isinstance(attends, bool) for attends in self.attention_levels):
            raise ValueError("UNetConfig: attention_levels are true or false")
        for mult in self.dim_mult:
            whole(
                "UNetConfig: the channels of a level", self.dim * whole("UNetConfig: dim_mult", mult, 64), MOST_CHANNELS
            )
        whole(
            "UNetConfig: the inner width behind the first convolution", self.first_heads * self.head_dim, MOST_CHANNELS
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.dim * mult for mult in self.dim_mult)

    @property
    def stride(self) -> int:
        """By what latent height and width must divide."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def embed_dim(self) -> int:
        return 4 * self.dim

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` takes it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        check_fields(cls, values)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class TransformerSite:
    """Where a transformer sits: its module name, "spatial" or "temporal", and the width of its residual stream."""

    name: str
    kind: str
    width: int


def transformer_sites(config: UNetConfig) -> list[TransformerSite]:
    """Every transformer of the UNet, in the order in which data meets them."""

    def pair(block: str, channels: int) -> list[TransformerSite]:
        return [TransformerSite(f"{block}.1", "spatial", channels), TransformerSite(f"{block}.2", "temporal", channels)]

    levels = list(zip(config.channels, config.attention_levels, strict=True))
    blocks = config.res_blocks + 1  # of a level: on the way in its last one is the downsampling
    sites = [TransformerSite("input_blocks.0.1", "temporal", config.first_heads * config.head_dim)]
    for level, (channels, attends) in enumerate(levels):
        for index in range(config.res_blocks if attends else 0):
            sites += pair(f"input_blocks.{level * blocks + index + 1}", channels)
    sites += pair("middle_block", config.channels[-1])
    for level, (channels, attends) in enumerate(reversed(levels)):
        for index in range(blocks if attends else 0):
            sites += pair(f"output_blocks.{level * blocks + index}", channels)
    return sites


class BoundAdapters(Protocol):
    """Adapters ready for one forward. `add` must be pure: gradient checkpointing calls it again."""

    def add(self, site: str, before: Tensor, after: Tensor, size: tuple[int, int], *, temporal: bool) -> Tensor:
        """The residual stream behind a sublayer: `after` plus whatever adapters sit at `site`.

        site: e.g. "input_blocks.1.1.transformer_blocks.0.attn2"; sublayers are attn1, attn2 and ff.
        before: the stream entering the sublayer (not normalised); after: before + sublayer(norm(before)).
        Both are [B, F, N, C], or [B, N, F, C] where `temporal`, with N = h*w of this level, row-major; size: (h, w).
        """


class Adapters(Protocol):
    def network(self, unet: UNet, timesteps: Tensor) -> UNet:
        """Called once a forward with timesteps [B]: the UNet whose layers run, `unet` or one with other weights."""

    def bind(self, timesteps: Tensor, size: tuple[int, int]) -> BoundAdapters:
        """Called once a forward with timesteps [B] and the latent size (h, w)."""


@dataclass(frozen=True)
class Call:
    """What every layer may read during one forward."""

    frames: int
    embedding: Tensor  # [B, E], of the timestep
    context: Tensor  # [B, T, D], one row a video
    adapters: BoundAdapters | None
    checkpointing: bool


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Timesteps [B] -> [B, dim], cosines first, float32 whatever the model's dtype: the phase is up to 999 rad."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    phase = torch.outer(timesteps.float(), torch.pow(10000, -steps / half))
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def unfold_frames(x: Tensor, frames: int) -> Tensor:
    """[B*F, C, H, W] -> [B, C, F, H, W]"""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def fold_frames(x: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B*F, C, H, W]"""
    return x.transpose(1, 2).flatten(0, 1)


class TemporalConv(nn.Module):
    """Four convolutions over time behind every residual block, zero-padded: the only source of temporal order."""

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
        return x + fold_frames(self.conv4(self.conv3(self.conv2(self.conv1(h)))))


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

        context = None if self.temporal else call.context
        x = adapted("attn1", x, self.attn1(self.norm1(x)))
        x = adapted("attn2", x, self.attn2(self.norm2(x), context))
        return adapted("ff", x, self.ff(self.norm3(x)))


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
        size = x.shape[-2:]
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B*F, N, C]
        h = self.proj_in(h).unflatten(0, (-1, call.frames))  # [B, F, N, C]
        for block in self.transformer_blocks:
            h = block(h, tuple(size), call)
        h = self.proj_out(h).flatten(0, 1)  # [B*F, N, C]
        return x + h.transpose(1, 2).unflatten(2, size)


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
        size = x.shape[-2:]
        x = unfold_frames(x, call.frames)  # [B, C, F, H, W]: the norm's statistics go across frames
        h = self.proj_in(self.norm(x).flatten(2)).unflatten(2, (call.frames, -1))  # [B, C, F, N]
        h = h.permute(0, 3, 2, 1).contiguous()  # [B, N, F, C]
        for block in self.transformer_blocks:
            h = block(h, tuple(size), call)
        h = self.proj_out(h.flatten(1, 2).transpose(1, 2)).unflatten(2, (-1, call.frames))  # [B, C, N, F]
        return fold_frames(x + h.transpose(2, 3).unflatten(3, size))


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
    return checkpoint(layer, x, call, use_reentrant=False) if call.checkpointing else layer(x, call)


class Block(nn.ModuleList):
    """Layers in a row, each a unit of gradient checkpointing."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        for layer in self:
            x = run(layer, x, call)
        return x


class UNet(nn.Module):
    """Predicts the noise in video latents.

    operations: namespace of the parametrised layers (Conv1d, Conv2d, Conv3d, Linear, GroupNorm, LayerNorm), each built
    with device= and dtype=. attention: function of q, k, v [batch, heads, length, head_dim], scaled by head_dim**-0.5.
    gradient_checkpointing: attribute; recomputes each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        operations=nn,
        attention: AttentionFunction = F.scaled_dot_product_attention,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        ops, factory = operations, {"device": device, "dtype": dtype}
        dim, levels = config.dim, list(zip(config.channels, config.attention_levels, strict=True))

        def stage(channels_in: int, channels: int, attends: bool) -> Block:
            block = Block([ResBlock(config, channels_in, channels, ops, factory)])
            if attends:
                block.append(SpatialTransformer(config, channels, attention, ops, factory))
                block.append(
                    TemporalTransformer(config, channels, channels // config.head_dim, attention, ops, factory)
                )
            return block

        self.time_embed = nn.Sequential(
            ops.Linear(dim, config.embed_dim, **factory),
            nn.SiLU(),
            ops.Linear(config.embed_dim, config.embed_dim, **factory),
        )

        first = TemporalTransformer(config, dim, config.first_heads, attention, ops, factory)
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([ops.Conv2d(config.in_channels, dim, 3, padding=1, **factory), first])]
        )
        width, skips = dim, [dim]
        for level, (channels, attends) in enumerate(levels):
            for _ in range(config.res_blocks):
                self.input_blocks.append(stage(width, channels, attends))
                width = channels
                skips.append(width)
            if level < len(levels) - 1:
                self.input_blocks.append(Downsample(width, ops, factory))
                skips.append(width)

        self.middle_block = stage(width, width, attends=True)
        self.middle_block.append(ResBlock(config, width, width, ops, factory))

        self.output_blocks = nn.ModuleList()
        for level, (channels, attends) in reversed(list(enumerate(levels))):
            for _ in range(config.res_blocks + 1):
                self.output_blocks.append(stage(width + skips.pop(), channels, attends))
                width = channels
            if level > 0:
                self.output_blocks[-1].append(Upsample(width, ops, factory))

        self.out = nn.Sequential(
            ops.GroupNorm(config.norm_groups, dim, **factory),
            nn.SiLU(),
            ops.Conv2d(dim, config.out_channels, 3, padding=1, **factory),
        )
        self._zero_residuals()
        for name, module in self.named_modules():
            if isinstance(module, TransformerBlock):
                module.site = name

    def _zero_residuals(self) -> None:
        """A new network starts with every residual branch, and its output, at zero."""
        layers: list[nn.Module] = [self.out[-1]]
        for module in self.modules():
            if isinstance(module, ResBlock):
                layers += [module.out_layers[-1], module.temopral_conv.conv4[-1]]
            elif isinstance(module, SpatialTransformer | TemporalTransformer):
                layers.append(module.proj_out)
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, which is what `x` should come in."""
        return self.time_embed[0].weight.dtype

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, adapters: Adapters | None = None) -> Tensor:
        """Noise in the latents x [B, C, F, h, w] at timesteps [B] (0..999), given text states context [B, T, D].

        One context row a video. Returns [B, C, F, h, w] in x's dtype. Raises ValueError for shapes that do not fit.
        """
        self._check(x, timesteps, context)
        batch, _, frames, *size = x.shape
        timesteps = timesteps.to(x.device)
        network = self if adapters is None else adapters.network(self, timesteps)
        call = Call(
            frames=frames,
            embedding=network.time_embed(sinusoid(timesteps, self.config.dim).to(x.dtype)),  # [B, E]
            context=context.to(x),
            adapters=None if adapters is None else adapters.bind(timesteps, size=tuple(size)),
            checkpointing=self.gradient_checkpointing and torch.is_grad_enabled(),
        )

        first_conv, first_transformer = network.input_blocks[0]
        h = run(first_transformer, first_conv(fold_frames(x)), call)  # [B*F, C, h, w]
        skips = [h]
        for block in network.input_blocks[1:]:
            h = block(h, call)
            skips.append(h)
        h = network.middle_block(h, call)
        for block in network.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), call)
        return unfold_frames(network.out(h), frames)

    def _check(self, x: Tensor, timesteps: Tensor, context: Tensor) -> None:
        config, stride = self.config, self.config.stride
        if x.ndim != 5 or x.shape[1] != config.in_channels or 0 in x.shape:
            raise ValueError(
                f"The UNet takes latents of shape [B, {config.in_channels}, F, h, w], got {list(x.shape)}."
            )
        batch, height, width = x.shape[0], x.shape[3], x.shape[4]
        if height % stride or width % stride:
            smaller = [max(side // stride, 1) * stride for side in (height, width)]
            larger = [-(-side // stride) * stride for side in (height, width)]
            nearest = dict.fromkeys(f"{h}x{w}" for h, w in (smaller, larger))  # one entry where both are the same
            raise ValueError(
                f"Latents of {height}x{width} do not divide by the UNet's stride {stride}; "
                f"nearest valid sizes: {' and '.join(nearest)}."
            )
        if timesteps.shape != (batch,):
            raise ValueError(f"The UNet takes one timestep a video, [{batch}], got {list(timesteps.shape)}.")
        if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != config.context_dim:
            raise ValueError(
                f"The UNet takes one text state a video, [{batch}, T, {config.context_dim}], got {list(context.shape)}."
            )
