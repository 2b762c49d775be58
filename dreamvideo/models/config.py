"""A network's architecture in numbers, and where its transformers sit; here the ModelScope UNet's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..safety.limits import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, check_fields, real, whole

Kind = TypeVar("Kind", bound="Stored")


class Stored:
    """A dataclass of numbers, texts and tuples of them that a file's metadata holds as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` takes it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """Raises ValueError for fields that there are not, and what the dataclass itself refuses."""
        check_fields(cls, values)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class TransformerSite:
    """Where a transformer sits: its module name, "spatial" or "temporal", and the width of its residual stream."""

    name: str
    kind: str
    width: int


@dataclass(frozen=True)
class ConvSite:
    """A temporal convolution: its module name, of its norm, activation and convolution together, and its channels."""

    name: str
    channels: int


class NetworkConfig(Stored):
    """What every network's architecture has in common; levels are listed finest first.

    family: the kind of base it belongs to. norm_across_frames: whether the residual blocks' group norms, and the
    output's, take their statistics over all frames of a video.
    """

    family: ClassVar[str]
    norm_across_frames: bool = False
    in_channels: int
    out_channels: int
    dim: int
    dim_mult: tuple[int, ...]
    res_blocks: int
    attention_levels: tuple[bool, ...]
    context_dim: int
    norm_groups: int
    dropout: float

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

    @property
    def linear_betas(self) -> bool:
        """Of the noise schedule that it was trained with: see `diffusion.Schedule`."""
        return False

    @property
    def head_width(self) -> int:
        """Of attention at the finest level."""
        raise NotImplementedError

    @property
    def most_frames(self) -> int | None:
        """Of a video; None where there is no limit."""
        return None

    def transformer_sites(self) -> list[TransformerSite]:
        raise NotImplementedError

    def temporal_convolutions(self) -> list[ConvSite]:
        raise NotImplementedError

    def level_of(self, site: str) -> float:
        """See the function of this name."""
        part, _, rest = site.partition(".")
        if part == "middle_block":
            return 1.0
        levels, index = len(self.dim_mult), int(rest.partition(".")[0])
        # A level has one block more than residual ones: on the way in its downsampling, behind the first block of all.
        level = (max(index - 1, 0) if part == "input_blocks" else index) // (self.res_blocks + 1)
        return (level if part == "input_blocks" else levels - 1 - level) / levels

    def _check_shape(self, numbers: tuple[str, ...]) -> None:
        """Raise ValueError for what no network has, before one is built of it. numbers: names of fields."""
        who = type(self).__name__
        for name in numbers:
            whole(f"{who}: {name}", getattr(self, name), MOST_CHANNELS)
        whole(f"{who}: res_blocks", self.res_blocks, MOST_BLOCKS)
        real(f"{who}: dropout", self.dropout, 0, 1)
        if not isinstance(self.dim_mult, (tuple, list)) or not isinstance(self.attention_levels, (tuple, list)):
            raise ValueError(f"{who}: dim_mult and attention_levels are lists with an entry a level")
        whole(f"{who}: the number of levels", len(self.dim_mult), MOST_LEVELS)
        if not all(isinstance(attends, bool) for attends in self.attention_levels):
            raise ValueError(f"{who}: attention_levels are true or false")
        for mult in self.dim_mult:
            whole(f"{who}: the channels of a level", self.dim * whole(f"{who}: dim_mult", mult, 64), MOST_CHANNELS)
        if len(self.dim_mult) != len(self.attention_levels):
            raise ValueError(
                f"{who} needs one attention flag a level, got {len(self.attention_levels)} flags "
                f"for {len(self.dim_mult)} levels."
            )


def text_layers(config: NetworkConfig) -> list[str]:
    """The transformers that read the text, in the order in which data meets them: 16 in the full size."""
    return [site.name for site in transformer_sites(config) if site.kind == "spatial"]


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """Architecture of the UNet; the defaults are ModelScope 1.7B's.

    `dim_mult` and `attention_levels` have one entry a level, finest level first. Attention heads are `head_dim` wide
    everywhere, C // head_dim of them, except in the temporal transformer behind the first convolution, which has
    `first_heads` and so an inner width of its own.
    """

    family: ClassVar[str] = "modelscope"

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
        self._check_shape(
            ("in_channels", "out_channels", "dim", "head_dim", "first_heads", "context_dim", "norm_groups")
        )
        whole(
            "UNetConfig: the inner width behind the first convolution", self.first_heads * self.head_dim, MOST_CHANNELS
        )
        for channels in (self.dim, *self.channels):
            if channels % self.norm_groups or channels % self.head_dim:
                raise ValueError(
                    f"UNetConfig: {channels} channels must divide by {self.norm_groups} (norm groups) "
                    f"and by head_dim {self.head_dim}."
                )

    @property
    def head_width(self) -> int:
        return self.head_dim

    def transformer_sites(self) -> list[TransformerSite]:
        def pair(block: str, channels: int) -> list[TransformerSite]:
            return [
                TransformerSite(f"{block}.1", "spatial", channels),
                TransformerSite(f"{block}.2", "temporal", channels),
            ]

        levels = list(zip(self.channels, self.attention_levels, strict=True))
        blocks = self.res_blocks + 1  # of a level: on the way in its last one is the downsampling
        sites = [TransformerSite("input_blocks.0.1", "temporal", self.first_heads * self.head_dim)]
        for level, (channels, attends) in enumerate(levels):
            for index in range(self.res_blocks if attends else 0):
                sites += pair(f"input_blocks.{level * blocks + index + 1}", channels)
        sites += pair("middle_block", self.channels[-1])
        for level, (channels, attends) in enumerate(reversed(levels)):
            for index in range(blocks if attends else 0):
                sites += pair(f"output_blocks.{level * blocks + index}", channels)
        return sites

    def temporal_convolutions(self) -> list[ConvSite]:
        levels, blocks = list(enumerate(self.channels)), self.res_blocks + 1
        found = [
            (f"input_blocks.{level * blocks + index + 1}.0", channels)
            for level, channels in levels
            for index in range(self.res_blocks)
        ]
        found += [(f"middle_block.{index}", self.channels[-1]) for index in (0, 3)]
        found += [
            (f"output_blocks.{place * blocks + index}.0", channels)
            for place, (_, channels) in enumerate(reversed(levels))
            for index in range(blocks)
        ]
        return [
            ConvSite(f"{block}.temopral_conv.conv{number}", channels)
            for block, channels in found
            for number in (1, 2, 3, 4)
        ]


def level_of(site: str, config: NetworkConfig) -> float:
    """How deep in a network a module lies, by its name: 0 at the outermost level, 1 in the middle block."""
    return config.level_of(site)


def transformer_sites(config: NetworkConfig) -> list[TransformerSite]:
    """Every transformer of a network, in the order in which data meets them."""
    return config.transformer_sites()


def temporal_convolutions(config: NetworkConfig) -> list[ConvSite]:
    """Every temporal convolution of a network, four behind each residual block, in the order of the data."""
    return config.temporal_convolutions()
