"""What Pillow and PyAV make of a file: one upright picture, or frames one by one with their times."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import check_readable

PathLike = str | os.PathLike[str]
Frame = Callable[[], Tensor]
"""Gives the pixels of a decoded frame, uint8 [3, H, W], until the next one is asked for."""

# No base was trained beyond 576 pixels: larger photographs are reduced while they are decoded.
LONGEST_SIDE = 2048
MAX_PIXELS = 300_000_000
# What decoding and converting a picture may take; a pixel takes 8 bytes where its mode is not named.
MAX_DECODED_BYTES = 700_000_000
BYTES_A_PIXEL = {"I": 24, "F": 24, "I;16": 11, "I;16B": 11, "I;16L": 11, "I;16N": 11, "1": 6, "L": 6}
# What browsers give a frame of an animation that names no duration.
DEFAULT_FRAME_SECONDS = 0.1

_ORIENTATIONS = {  # EXIF tag 274 -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PILLOW_LIMIT = threading.Lock()


def existing_file(path: PathLike) -> Path:
    """The path, of a file that is there and holds something; ValueError else."""
    check_readable(path)
    return Path(path)


def read_picture(path: Path) -> Image.Image:
    """The picture in mode RGB or RGBA with 8 bits, upright, its longest side at most LONGEST_SIDE.

    Raises ValueError for a missing or damaged file, one that is no picture, and one beyond MAX_PIXELS.
    """
    with _open_picture(path) as picture:
        try:
            orientation = picture.getexif().get(274, 1)
            scale = min(1.0, LONGEST_SIDE / max(picture.size))
            size = tuple(max(1, round(side * scale)) for side in picture.size)
            whole = picture.size
            picture.draft(None, size)  # JPEG decodes at an eighth, a quarter or half of the size where that suffices
            # All of a progressive one's coefficients are held before the first pixel is made.
            _check_memory(path, picture, whole if "progressive" in picture.info else picture.size)
            plain = _eight_bits(picture)
            if plain.size != size:
                plain = plain.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
        except _TooLarge:
            raise
        except Exception as error:  # a decoder fails in as many ways as there are formats
            raise _unreadable(path) from error
    return plain.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else plain


def _open_picture(path: Path) -> Image.Image:
    path = existing_file(path)
    try:
        # Pillow's own limit is a module variable and below what cameras reach today; ours is asked right after.
        with _PILLOW_LIMIT, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except Exception as error:
        raise _unreadable(path) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        picture.close()
        raise _TooLarge(f"{path} is {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million; scale it down.")
    return picture


class _TooLarge(ValueError):
    """A picture that is whole and asks for too much."""


def _check_memory(path: Path, picture: Image.Image, size: tuple[int, int]) -> None:
    """Raise ValueError for a picture of which decoding `size` pixels takes too much."""
    most = MAX_DECODED_BYTES // BYTES_A_PIXEL.get(picture.mode, 8)
    if size[0] * size[1] > most:
        kind = f"in a {picture.format} of mode {picture.mode}"
        raise _TooLarge(
            f"{path} is {size[0]}x{size[1]} pixels, more than {most // 10**6} million {kind}; scale it down."
        )


def _unreadable(path: Path) -> ValueError:
    return ValueError(f"{path} is not a picture that can be read, or is damaged; save it again as PNG or JPEG.")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB, or RGBA where something may be transparent."""
    mode = picture.mode
    if mode.startswith("I;16"):
        values = np.asarray(picture)
        wide = values.max() > 255  # else a mask or picture of 8 bits that was saved with 16
        return Image.fromarray((values >> 8 if wide else values).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):  # nothing says where white is
        values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        whites = (255.0, 65535.0) if mode == "I" else (1.0, 255.0, 65535.0)
        white = next((white for white in whites if values.max() <= white), values.max())
        return Image.fromarray((values / white * 255.0).clip(0, 255).astype(np.uint8)).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, *profiles, outputMode="RGB")
    if mode in ("La", "RGBa"):
        picture = picture.convert(mode.upper())
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def picture_tensor(picture: Image.Image) -> Tensor:
    """A picture in mode RGB or RGBA, composited on white, as uint8 [3, H, W]."""
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def animation_frames(path: Path) -> Iterator[tuple[Frame | None, float]]:
    """Frames of an animated picture and the seconds at which they appear; None for a damaged one."""
    with _open_picture(path) as picture:
        seconds = 0.0
        for index in range(getattr(picture, "n_frames", 1)):
            try:
                picture.seek(index)
                _check_memory(path, picture, picture.size)
                picture.load()
            except _TooLarge:
                raise
            except Exception:  # as in read_picture; what came before is good
                yield None, 0.0
                return
            yield lambda: picture_tensor(picture.convert("RGBA")), seconds
            seconds += picture.info.get("duration", 0) / 1000 or DEFAULT_FRAME_SECONDS


def video_frames(
    source: Path | BytesIO, start: float = 0.0, seconds: float | None = None
) -> Iterator[tuple[Frame | None, float]]:
    """Frames of a video and the seconds at which they appear; None for a damaged one.

    With `start` and `seconds` those of that stretch alone. Raises ValueError for a file that cannot be opened and for
    one without a picture track.
    """
    import av

    name = source_name(source)
    if isinstance(source, BytesIO):
        source.seek(0)
    try:
        container = av.open(source if isinstance(source, BytesIO) else str(source))
    except av.error.FFmpegError as error:
        raise ValueError(f"{name} is not a video that can be read, or is damaged.") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{name} has no picture track that can be read.")
        stream = container.streams.video[0]
        first, last = _ticks(stream, start, seconds)
        if first > 0:
            container.seek(first, stream=stream)
        period = 1.0 / float(stream.average_rate or 1.0 / DEFAULT_FRAME_SECONDS)
        packets, count = container.demux(stream), 0
        while True:
            try:
                packet = next(packets, None)
                decoded = [] if packet is None else packet.decode()
            except av.error.FFmpegError:
                yield None, 0.0
                continue
            if packet is None:
                return
            for frame in decoded:
                if frame.pts is not None and frame.pts < first:
                    continue
                if frame.pts is not None and frame.pts >= last:
                    return
                yield (None if frame.is_corrupt else partial(_upright, frame, stream)), _seconds(frame, count * period)
                count += 1


def source_name(source: Path | BytesIO) -> str:
    """What messages call it."""
    return "The video" if isinstance(source, BytesIO) else str(source)


def _ticks(stream: Any, start: float, seconds: float | None) -> tuple[float, float]:
    """A stretch in the stream's own units: the first that belongs to it, and the first after it."""
    if not start and seconds is None:
        return -math.inf, math.inf
    first = int(start / stream.time_base)
    return first, math.inf if seconds is None else int((start + seconds) / stream.time_base)


def _seconds(frame: Any, fallback: float) -> float:
    return fallback if frame.time is None else frame.time


def _upright(frame: Any, stream: Any) -> Tensor:
    """A decoded frame as uint8 [3, H, W], square pixels, turned as the camera was held."""
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    pixels = frame.to_ndarray(format="rgb24", width=max(1, round(frame.width * aspect)), height=frame.height)
    turns = round(getattr(frame, "rotation", 0) / 90)
    return torch.from_numpy(np.rot90(pixels, turns).copy()).permute(2, 0, 1).contiguous()
