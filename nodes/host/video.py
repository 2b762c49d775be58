"""VIDEO inputs that are files, which the engine reads frame by frame where the host would decode them whole."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from comfy_api.latest import InputImpl


@dataclass(frozen=True)
class VideoFile:
    """A path or a file's bytes, and the stretch of it that counts, in seconds; None to its end."""

    source: str | BytesIO
    start: float
    seconds: float | None


def file_of(video: Any) -> VideoFile | None:
    """The file behind a VIDEO; None for one that lies in memory or that the host changes while it decodes.

    A host that trims but does not tell how, or knows of other changes (a crop), is left to decode by itself.
    """
    if type(video) is not InputImpl.VideoFromFile:
        return None
    told = ("file", "start_time", "duration") if hasattr(video, "get_active_trim_window") else ("file",)
    changes = {name for name, value in vars(video).items() if value}
    if changes - {f"_VideoFromFile__{name}" for name in told}:
        return None
    start, seconds = video.get_active_trim_window() if len(told) > 1 else (0.0, 0.0)
    return VideoFile(video.get_stream_source(), start, seconds or None)
