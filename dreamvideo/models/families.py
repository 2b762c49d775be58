"""The kinds of networks there are: a configuration, as an object or as a file tells it, to the network it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..safety.limits import short
from .animatediff import ImageUNet
from .config import NetworkConfig, UNetConfig
from .image_config import ImageUNetConfig
from .network import VideoUNet
from .unet import UNet

CONFIGS: Mapping[str, type[NetworkConfig]] = {config.family: config for config in (UNetConfig, ImageUNetConfig)}


def config_from(values: Mapping[str, Any]) -> NetworkConfig:
    """The configuration that a file tells; one without "family" is the ModelScope UNet's. ValueError for others."""
    values = dict(values)
    family = values.pop("family", UNetConfig.family)
    if not isinstance(family, str) or family not in CONFIGS:
        raise ValueError(f"there is no family {short(family)} of networks here, there are {', '.join(CONFIGS)}")
    return CONFIGS[family].from_dict(values)


def build_network(config: NetworkConfig, **how: Any) -> VideoUNet:
    """A new network. how: operations, attention, device and dtype, as of `unet.UNet`."""
    if isinstance(config, ImageUNetConfig):
        return ImageUNet(config, **how)
    assert isinstance(config, UNetConfig)
    return UNet(config, **how)
