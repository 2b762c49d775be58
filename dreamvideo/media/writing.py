"""Videos, animations and pictures, written whole or not at all."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..safety.paths import atomic_path
from .folders import PathLike

SOFTWARE = "DreamVideo"  # what a PNG file says that was written here


def write_video(path: PathLike, frames: Tensor, fps: float = 8.0) -> None:
    """Write frames [F, 3, H, W], floating in 0..1 or uint8, as H.264 (mp4, mov or mkv), atomically.

    Odd sizes gain a repeated row or column, which the pixel format needs. Raises ValueError for anything that cannot
    be written.
    """
    import av

    path, pixels = _output(path, frames, fps, (".mp4", ".mov", ".mkv"))
    height, width = pixels.shape[1:3]
    pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # [F, H, W, 3]
    with (
        atomic_path(path) as part,
        av.open(str(part), "w", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "15", "preset": "medium"}
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_animation(path: PathLike, frames: Tensor, fps: float = 8.0) -> None:
    """Write frames [F, 3, H, W], floating in 0..1 or uint8, as an endless gif or webp, atomically.

    A gif has one palette for all frames, so that its colours do not flicker.
    """
    path, pixels = _output(path, frames, fps, (".gif", ".webp"))
    pictures = [Image.fromarray(frame) for frame in pixels]
    gif = path.suffix.lower() == ".gif"
    if gif:
        palette = Image.fromarray(np.concatenate(pixels[:: 1 + len(pixels) // 16])).quantize(256)
        pictures = [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    # Files count time in whole ticks: round the instants, not the durations, so that errors do not add up.
    # What is over in 10 ms browsers show for 100.
    tick, shortest = (10, 2) if gif else (1, 11)
    ticks = [round(k * 1000 / fps / tick) for k in range(len(pictures) + 1)]
    durations = [max(shortest, after - before) * tick for before, after in zip(ticks, ticks[1:], strict=False)]
    options: dict[str, Any] = {} if gif else {"quality": 90, "method": 4}
    with atomic_path(path) as part:
        pictures[0].save(part, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)


def write_png(path: PathLike, image: Tensor) -> None:
    """Write one picture [3, H, W], floating in 0..1 or uint8, as PNG, atomically."""
    path, pixels = _output(path, image[None], 1.0, (".png",))
    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    with atomic_path(path) as part:
        Image.fromarray(pixels[0]).save(part, optimize=True, pnginfo=mark)


def _output(path: PathLike, frames: Tensor, fps: float, suffixes: tuple[str, ...]) -> tuple[Path, np.ndarray]:
    """The checked path, and the frames as uint8 [F, H, W, 3]."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}.")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"{path} cannot be written: frames have shape [F, 3, H, W], got {list(frames.shape)}.")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path} cannot be written with {fps} frames a second.")
    if frames.dtype != torch.uint8:
        frames = (frames.detach().float().nan_to_num().clamp(0, 1) * 255.0).round().to(torch.uint8)
    return path, frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()
