"""What can be counted without a GPU, at full size: memory of sampling, arithmetic of training steps and of adapters.

    python -m benchmarks.counted

Tensors tell their sizes and hold nothing. Memory counts weights and what a forward of both halves of guidance holds at
once, as PyTorch's MemTracker sees it; what an allocator rounds up, and encoders that stay on the device, come on top.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from dreamvideo.devices import GIB
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.layers import economical
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet

from .authors import AuthorsNetwork
from .setting import CAPTION
from .shortcuts import in_one_piece
from .sizes import SIZES, Size, make_encoders


@torch.no_grad()
def sampling_peak(frames: int, pixels: int = 256, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes at the peak of one guided prediction of a video by the base."""
    config = UNetConfig()
    with FakeTensorMode():
        unet = UNet(config, dtype=dtype).eval()
        x = torch.randn(2, config.in_channels, frames, pixels // 8, pixels // 8, dtype=dtype)
        context = torch.randn(2, 77, config.context_dim, dtype=dtype)
        tracker = MemTracker()
        tracker.track_external(unet, x, context)
        with tracker:
            in_one_piece(lambda: unet(x, torch.tensor([500, 500]), context), sys.maxsize)()  # as on a GPU
        return sum(found["Total"] for found in tracker.get_tracker_snapshot("peak").values())


@torch.no_grad()
def adapters_share(config: UNetConfig, frames: int = 32, pixels: int = 256) -> float:
    """The arithmetic of an identity and a motion adapter over that of the base, for one video."""
    with torch.device("meta"):
        unet = UNet(config)
        chosen = (AdapterConfig.identity(), AdapterConfig.motion(condition_dim=config.context_dim))
        stack = AdapterStack([StackEntry(Adapter(each, config)) for each in chosen])
        inputs = (
            torch.empty(1, config.in_channels, frames, pixels // 8, pixels // 8),
            torch.empty(1),
            torch.empty(1, 77, config.context_dim),
        )

    return operations(lambda: unet(*inputs, adapters=stack)) / operations(lambda: unet(*inputs)) - 1


def step_arithmetic(kind: str, size: Size) -> tuple[int, int]:
    """Operations of one training step of a stage ("token", "identity", "motion"), (authors', ours)."""
    rows, frames = (1, size.frames) if kind == "motion" else (4, 1)
    side, width = size.pixels // 8, size.unet.context_dim
    with torch.device("meta"):
        unet = UNet(size.unet, operations=economical(nn)).eval().requires_grad_(False)
        encoders = make_encoders(size, torch.device("meta"))
        config = (
            AdapterConfig.motion(condition_dim=size.feature_width) if kind == "motion" else AdapterConfig.identity()
        )
        adapters = [] if kind == "token" else [Adapter(config, size.unet)]
        network = AuthorsNetwork(unet, adapters, checkpointing=True)
        x, timesteps = torch.empty(rows, 4, frames, side, side), torch.empty(rows)
        pictures = torch.empty(rows * frames, 3, size.pixels, size.pixels)
        seen = torch.empty(rows, 3, *encoders.image.clip.visual.image_size)
        states, feature = torch.empty(rows, 77, width), torch.empty(rows, size.feature_width)
        tokens = {"*": torch.empty(1, width, requires_grad=True)} if kind == "token" else {}
    network.adapters.requires_grad_(True)
    stack = AdapterStack([StackEntry(adapter) for adapter in adapters], feature if kind == "motion" else None)

    def authors() -> None:
        with torch.no_grad():
            for picture in pictures:
                encoders.vae.vae.encode(picture[None])
            encoders.image.clip.encode_image(seen)
        context = encoders.text.encode([CAPTION if tokens else "a road"] * rows, tokens)
        network(x, timesteps, context, stack.feature).mean().backward()

    def ours() -> None:
        context = encoders.text.encode([CAPTION], tokens).expand(rows, -1, -1) if tokens else states
        unet(x, timesteps, context, stack).mean().backward()

    return operations(authors), operations(ours)


def operations(job: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


if __name__ == "__main__":
    for frames in (16, 32):
        print(f"{frames} frames of 256 x 256: {sampling_peak(frames) / GIB:.1f} GiB")
    for name in ("middle", "full"):
        print(f"both adapters' arithmetic, {name} size: {adapters_share(SIZES[name].unet):.1%} of the base's")
    for name in ("middle", "full"):
        for kind in ("token", "identity", "motion"):
            authors, ours = step_arithmetic(kind, SIZES[name])
            print(f"a step's arithmetic, {name} size, {kind}: authors / ours {authors / ours:.2f}")
