"""What can be counted without a GPU: the peak memory of sampling at full size, and the adapters' share of arithmetic.

    python -m benchmarks.counted

Tensors tell their sizes and hold nothing. Memory counts weights and what a forward of both halves of guidance holds at
once, as PyTorch's MemTracker sees it; what an allocator rounds up, and encoders that stay on the device, come on top.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from dreamvideo.adapters import Adapter, AdapterConfig, AdapterStack, StackEntry
from dreamvideo.memory import GIB
from dreamvideo.unet import UNet, UNetConfig

from .sizes import SIZES


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
            unet(x, torch.tensor([500, 500]), context)
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

    def operations(adapters: AdapterStack | None) -> int:
        with FlopCounterMode(display=False) as counter:
            unet(*inputs, adapters=adapters)
        return counter.get_total_flops()

    return operations(stack) / operations(None) - 1


if __name__ == "__main__":
    for frames in (16, 32):
        print(f"{frames} frames of 256 x 256: {sampling_peak(frames) / GIB:.1f} GiB")
    for name in ("middle", "full"):
        print(f"both adapters' arithmetic, {name} size: {adapters_share(SIZES[name].unet):.1%} of the base's")
