"""Peak memory of sampling at full size, counted without a GPU: tensors that tell their sizes and hold nothing.

    python -m benchmarks.counted

Counts weights and what a forward of both halves of guidance holds at once, as PyTorch's MemTracker sees it; what an
allocator rounds up, and encoders that stay on the device, come on top.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from dreamvideo.memory import GIB
from dreamvideo.unet import UNet, UNetConfig


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


if __name__ == "__main__":
    for frames in (16, 32):
        print(f"{frames} frames of 256 x 256: {sampling_peak(frames) / GIB:.1f} GiB")
