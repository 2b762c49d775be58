"""What PyAV makes of a file: frames one by one, upright, in sRGB, with their times."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .colour import frame_note, frame_pixels
from .decoding import Frames, NoPictures, source_name
from .folders import Say, quiet
from .times import DEFAULT_FRAME_SECONDS, StreamClock

# FFmpeg's names of containers that hold a clip themselves; it also knows lists of files and programs that draw.
CLIP_FORMATS = (
    *("mov", "matroska", "webm", "avi", "mpeg", "mpegts", "flv", "asf", "ogg", "mxf", "dv", "nut", "ivf", "rm"),
    *("mpegvideo", "m4v", "h264", "hevc", "obu", "yuv4mpegpipe"),
    *("wav", "mp3", "flac"),  # sound alone, of which that is said,
)


def video_frames(source: Path | BytesIO, start: float = 0.0, seconds: float | None = None, tell: Say = quiet) -> Frames:
    """Frames of a video and the seconds at which they appear; None for a damaged one.

    With `start` and `seconds` those of that stretch alone. `tell` hears what is wrong with the colours.
    Raises ValueError for a file that cannot be opened, NoPictures for one without a picture track.
    """
    from av.error import FFmpegError

    with _open_video(source) as container:
        stream = _picture_track(container, source_name(source))
        first, last = _ticks(stream, start, seconds)
        clock, decode = _clock(container, stream), _decoder(stream, tell)
        if first > 0 and not clock.chunks:  # a count needs its beginning
            container.seek(first, stream=stream)
        packets, told = container.demux(stream), False
        while True:
            packet = None
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if not packet.size and packet.dts is not None:  # shows the frame before for longer
                    continue
                clock.sent(packet.dts)
                decoded = decode(packet)
            except FFmpegError:
                if packet is not None:
                    clock.lost(packet.dts)
                yield None, 0.0
                continue
            for frame in decoded:
                ticks = clock.ticks(frame.pts)
                if ticks < first:
                    continue
                if ticks >= last:
                    return
                if not told:
                    told = True
                    if note := frame_note(frame, stream.codec_context):
                        tell(f"{Path(source_name(source)).name}: {note}.")
                yield (None if frame.is_corrupt else partial(_upright, frame, stream)), clock.seconds(ticks)


def _open_video(source: Path | BytesIO) -> Any:
    """PyAV's container of a clip. Playlists, patterns of names and other addresses are never followed."""
    import av
    from av.error import FFmpegError

    if isinstance(source, BytesIO):
        source.seek(0)
    options = {"format_whitelist": ",".join(CLIP_FORMATS), "protocol_whitelist": "file"}
    try:
        return av.open(source if isinstance(source, BytesIO) else f"file:{source}", options=options)
    except FFmpegError as error:
        raise ValueError(f"{source_name(source)} is not a video that can be read, or is damaged.") from error


def _picture_track(container: Any, name: str) -> Any:
    """The first track of moving pictures; the cover of a song is none."""
    from av.stream import Disposition

    cover = Disposition.attached_pic
    stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    if stream is None or stream.codec_context is None:
        raise NoPictures(f"{name} has no picture track that can be read.")
    return stream


def _clock(container: Any, stream: Any) -> StreamClock:
    rate = stream.guessed_rate or stream.average_rate
    second = 1.0 / float(stream.time_base)
    return StreamClock(
        period=second / float(rate) if rate else second * DEFAULT_FRAME_SECONDS,
        second=second,
        chunks=container.format.name == "avi",
        joins=container.format.name in ("mpeg", "mpegts"),
    )


def _decoder(stream: Any, tell: Say) -> Callable[[Any], list[Any]]:
    """What gives the frames of a packet. FFmpeg's own VP8 and VP9 leave transparency out; libvpx reads it."""
    import av
    from av.error import FFmpegError

    if stream.metadata.get("alpha_mode") != "1":
        return lambda packet: packet.decode()
    try:
        decoder: Any = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[stream.codec_context.name], "r")
    except (KeyError, ValueError, FFmpegError):  # this FFmpeg is without libvpx
        tell("The clip's transparency cannot be read here, and its ground is the one hidden below.")
        return lambda packet: packet.decode()
    return lambda packet: decoder.decode(packet if packet.size else None)


def _ticks(stream: Any, start: float, seconds: float | None) -> tuple[float, float]:
    """A stretch in the stream's own units: the first that belongs to it, and the first after it."""
    if not start and seconds is None:
        return -math.inf, math.inf
    first = int(start / stream.time_base)
    return first, math.inf if seconds is None else int((start + seconds) / stream.time_base)


def _upright(frame: Any, stream: Any) -> Tensor:
    """A decoded frame as uint8 [3, H, W], square pixels, turned as the camera was held."""
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    pixels = frame_pixels(frame, stream.codec_context, max(1, round(frame.width * aspect)), frame.height)
    turns = round(getattr(frame, "rotation", 0) / 90)
    return torch.from_numpy(np.rot90(pixels, turns).copy()).permute(2, 0, 1).contiguous()
