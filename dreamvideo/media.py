"""Photographs, masks, clips and captions in; videos, animations and pictures out; cropping and the choice of frames.

Images are float32 in 0..1, [3, H, W] or [N, 3, H, W]; masks are 0 or 1, [1, H, W]. A `Clip` keeps its frames in uint8.
What cannot be read or is of no use raises ValueError in one sentence.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .files import atomic_path
from .media_files import (
    DEFAULT_FRAME_SECONDS,
    Frame,
    PathLike,
    animation_frames,
    existing_file,
    picture_tensor,
    read_picture,
    source_name,
    video_frames,
)

Size = tuple[int, int]
"""(height, width) in pixels."""

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".tga"}
)
ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".apng"})
VIDEO_SUFFIXES = ANIMATION_SUFFIXES | frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv"}
)

SHORTEST_SIDE = 16
SOFTWARE = "DreamVideo"  # what a PNG file says that was written here
# uint8 pixels of one clip in memory: about eleven minutes at 256x256 and 8 frames a second.
MAX_CLIP_BYTES = 1 << 30


@dataclass(frozen=True)
class Photo:
    """A photograph [3, H, W], the mask of its subject [1, H, W] and its caption, where there are any."""

    image: Tensor
    mask: Tensor | None
    caption: str | None
    path: Path


@dataclass(frozen=True)
class Clip:
    """Frames uint8 [F, 3, H, W], the seconds at which they appear (float64 [F], from 0), their mean rate.

    `note` says in one sentence what was left out while reading, if anything was.
    """

    frames: Tensor = field(repr=False)
    times: Tensor = field(repr=False)
    fps: float
    caption: str | None = None
    path: Path | None = None
    note: str = ""

    def pixels(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """The frames, or those at `indices`, as float32 in 0..1: [F, 3, H, W]."""
        frames = self.frames if indices is None else self.frames[torch.as_tensor(indices)]
        return frames.float() / 255.0


@dataclass(frozen=True)
class FrameChoice:
    """Indices int64 [count] into a clip, the frames a second they amount to, and a note on what had to give."""

    indices: Tensor
    fps: float
    note: str = ""


# --- photographs and masks -------------------------------------------------------------------------------------------


def load_image(path: PathLike) -> Tensor:
    """A photograph as [3, H, W] in 0..1: upright, composited on white, its longest side at most 2048 pixels.

    Any mode Pillow knows is read, the first picture of an animation. Raises ValueError for a missing or broken file,
    for one that holds no picture, and for more than 500 megapixels.
    """
    return picture_tensor(read_picture(Path(path))).float() / 255.0


def load_mask(path: PathLike, size: Size | None = None) -> Tensor:
    """A mask as [1, H, W] of zeros and ones, one on the subject (white, or opaque where the file is transparent).

    `size` is the photograph's: a mask of the same shape but another resolution is resized to it. Raises ValueError
    for one of another shape and for one that is all black.
    """
    path = Path(path)
    picture = read_picture(path)
    values = np.asarray(picture.getchannel("A") if picture.mode == "RGBA" else picture.convert("L"))
    levels = np.unique(values)
    # Label masks hold 0 and 1, or a dark palette colour: two levels are a mask however dark the brighter one is.
    threshold = levels[-1] / 2 if len(levels) == 2 else 127
    mask = torch.from_numpy((values > threshold).astype(np.float32))[None]  # [1, H, W]
    if not mask.any():
        raise ValueError(f"The mask {path} is all black; paint the subject white.")
    if size is None or mask.shape[1:] == size:
        return mask
    (height, width), (mask_height, mask_width) = size, mask.shape[1:]
    if abs(mask_width * height - mask_height * width) > max(height, mask_height, width, mask_width):
        raise ValueError(
            f"The mask {path} is {mask_width}x{mask_height} pixels, its photograph {width}x{height}: "
            "make the mask the size of the photograph."
        )
    return F.interpolate(mask[None], size=size, mode="nearest-exact")[0]


def load_images(
    source: PathLike | Sequence[PathLike], size: Size | None = None, *, with_masks: bool = True
) -> list[Photo]:
    """Photographs of a folder, or the files given, in order, with their captions and, if wanted, their masks.

    The mask of `00.jpg` is `masks/00.*` beside it, its caption `00.txt`. With `size` photographs and masks are
    cropped to it as they are read, so memory does not grow with the size of the photographs.
    Raises ValueError when there are no photographs, when masks lie there but fit none of them, and for unusable files.
    """
    paths = _media_files(source, PHOTO_SUFFIXES, "photographs")
    if not with_masks:
        return [_load_photo(path, None, size) for path in paths]
    masks = {path: _mask_path(path) for path in paths}
    folders = {path.parent / "masks" for path in paths}
    if not any(masks.values()) and any(_files_in(folder, PHOTO_SUFFIXES) for folder in folders):
        raise ValueError(
            f"No mask in {min(folders)} is named like a photograph; the mask of {paths[0].name} "
            f"would be {paths[0].stem}.png."
        )
    return [_load_photo(path, masks[path], size) for path in paths]


def cover_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The centre of images [..., C, H, W] at the wanted shape, scaled to height x width with antialiasing.

    The same region as scaling until the size is covered and cropping the centre, for any shape of picture.
    Keeps the dtype, uint8 or floating.
    """
    if height < 1 or width < 1:
        raise ValueError(f"Pictures cannot be cropped to {width}x{height} pixels.")
    full_height, full_width = images.shape[-2:]
    scale = max(height / full_height, width / full_width)
    rows = min(full_height, max(1, round(height / scale)))
    columns = min(full_width, max(1, round(width / scale)))
    top, left = (full_height - rows) // 2, (full_width - columns) // 2
    images = images[..., top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return images.contiguous()
    flat = images.reshape(-1, *images.shape[-3:])  # [N, C, rows, columns]
    flat = F.interpolate(flat, size=(height, width), mode="bilinear", antialias=True)
    return flat.reshape(*images.shape[:-2], height, width)


def mask_to_latent(mask: Tensor, height: int, width: int) -> Tensor:
    """Masks [..., 1, H, W] at latent resolution, [..., 1, height, width], nearest, zeros and ones.

    Raises ValueError when nothing of a mask is left there: the masked loss would then be zero and teach nothing.
    """
    flat = mask.reshape(-1, *mask.shape[-3:]).float()
    small = (F.interpolate(flat, size=(height, width), mode="nearest-exact") > 0.5).float()
    if not small.flatten(1).any(dim=1).all():
        raise ValueError(
            f"A mask covers too little to be seen at the latents' {width}x{height}; "
            "crop the photograph closer to the subject, or train without masks."
        )
    return small.reshape(*mask.shape[:-2], height, width)


# --- clips -----------------------------------------------------------------------------------------------------------


def read_clip(path: PathLike, size: Size | None = None) -> Clip:
    """A video (anything FFmpeg decodes) or animated gif, webp, png, with its caption from the `.txt` beside it.

    With `size` each frame is scaled and cropped as it is decoded; without, frames keep theirs, upright and with
    square pixels. Frame times are the file's own, so a variable rate survives. A clip beyond 1 GiB of pixels is
    read up to there, damaged frames are left out, and `note` says so.
    Raises ValueError for a missing or broken file and for one without frames.
    """
    path = existing_file(path)
    frames: list[Tensor] = []
    times: list[float] = []
    damaged, cut, left = False, False, MAX_CLIP_BYTES
    reader = _frames_of(path)
    for frame, seconds in reader:
        if frame is None:
            damaged = True
            continue
        if frames and left < frames[0].numel():
            cut = True
            break
        frames.append(frame() if size is None else cover_crop(frame(), *size))
        times.append(seconds)
        left -= frames[-1].numel()
    reader.close()
    if not frames:
        raise ValueError(f"{path} has no frames that can be read.")
    if len({frame.shape for frame in frames}) > 1:  # a stream may change its size midway
        frames = [cover_crop(frame, *frames[0].shape[-2:]) for frame in frames]
    appear, fps = _frame_times(times)
    note = _reading_note(path.name, len(frames), damaged, cut)
    return Clip(torch.stack(frames), appear, fps, caption_of(path), path, note)


def find_clips(source: PathLike | Sequence[PathLike], frames: int = 1) -> list[Path]:
    """The clips of a folder, or the files given, in order, of which two frames, or one, were found to decode.

    What is to be read for an hour is looked at first. Raises ValueError when there are none, for files that
    `read_clip` would refuse, and for a single frame where several are to be taken.
    """
    paths = _media_files(source, VIDEO_SUFFIXES, "videos")
    for path in paths:
        reader = _frames_of(existing_file(path))
        found = sum(1 for _ in islice((frame for frame, _ in reader if frame is not None), 2))
        reader.close()
        if not found:
            raise ValueError(f"{path} has no frames that can be read.")
        if found < min(frames, 2):
            raise ValueError(f"{path} holds a single frame, which shows no motion; give a video.")
    return paths


def read_motion(
    source: PathLike | BytesIO,
    size: Size,
    frames: int,
    fps: float,
    *,
    start: float = 0.0,
    seconds: float | None = None,
) -> Clip:
    """What training takes of a clip: all of it at `fps` frames a second, at least `frames`, cropped to `size`.

    source: as for `read_clip`, or a video's bytes. start, seconds: a stretch of a video, None to its end. The file is
    gone through twice, first for its times alone: no frame that `thin_out` leaves out is ever turned into pixels.
    Of more than 1 GiB of pixels the first are taken; `note` says so, and what had to give in thinning out. The caption
    is left to `caption_of`. Raises ValueError as `read_clip` and `choose_frames` do.
    """
    path = None if isinstance(source, BytesIO) else existing_file(source)
    stretch, name = (path or source, start, seconds), source_name(path or source)
    seen = [None if frame is None else appears for frame, appears in _frames_of(*stretch)]
    times = [appears for appears in seen if appears is not None]
    if not times:
        raise ValueError(f"{name} has no frames that can be read.")
    appear, _ = _frame_times(times)
    choice = thin_out(appear, frames, fps)
    kept, places = choice.indices.unique(return_inverse=True)
    while len(kept) > (most := max(1, MAX_CLIP_BYTES // (3 * size[0] * size[1]))):
        appear = appear[: kept[most]]
        choice = thin_out(appear, frames, fps)
        kept, places = choice.indices.unique(return_inverse=True)
    pixels = _pixels_at(_frames_of(*stretch), kept, size)
    read = _reading_note(Path(name).name, len(appear), len(times) < len(seen), len(appear) < len(times))
    return Clip(
        pixels if len(kept) == len(places) else pixels[places],
        torch.arange(len(places), dtype=torch.float64) / choice.fps,
        choice.fps,
        path=path,
        note=" ".join(note for note in (read, choice.note) if note),
    )


def thin_out(times: Tensor, frames: int, fps: float) -> FrameChoice:
    """All of a clip at `fps` frames a second, at least `frames`, given the seconds [F] at which its frames appear.

    Raises ValueError as `choose_frames` does.
    """
    own = _mean_rate(times)
    whole = int(len(times) / own * min(fps, own) + 1e-6)
    return choose_frames(times, max(frames, whole), fps, start=0.0)


def choose_frames(
    times: Tensor,
    count: int,
    target_fps: float = 8.0,
    start: float | None = None,
    generator: torch.Generator | None = None,
) -> FrameChoice:
    """Which `count` frames of a clip to take, given the seconds [F] at which its frames appear.

    They are those on screen at `target_fps` instants a second, or at the clip's own rate where that is lower. They
    begin at the frame on screen at `start` seconds, else at a random one if there is a generator, else at the first;
    early enough for all to fit. A clip too short for that is taken whole, at a higher rate. A clip with fewer
    frames than asked repeats them evenly: it looks slower and keeps its direction, where playing it to and fro would
    teach the reversed motion, and holding the last frame stillness.
    Raises ValueError for a single frame where several are asked, and for a count or rate below what makes sense.
    """
    n = len(times)
    if count < 1 or not target_fps > 0 or n < 1:
        raise ValueError(f"Cannot choose {count} frames at {target_fps} frames a second from {n} frames.")
    if n == 1 and count > 1:
        raise ValueError(f"{count} frames were asked of a single one, which shows no motion; give a video.")
    times = times.double() - times[0]
    period = float(times[-1]) / (n - 1) if n > 1 else 1.0 / target_fps
    native, shown = 1.0 / period, n * period
    window = min(count / min(target_fps, native), shown)
    rate = count / window
    slack = float(times.diff().median()) / 4 if n > 1 else 0.0  # some containers round times to milliseconds
    starts = int(torch.searchsorted(times, shown - window + slack, right=True))
    first = 0
    if start is not None:
        on_screen = int(torch.searchsorted(times, start + slack, right=True)) - 1
        first = min(max(on_screen, 0), starts - 1)
    elif generator is not None:
        first = int(torch.randint(starts, (1,), generator=generator, device=generator.device))
    instants = times[first] + torch.arange(count, dtype=torch.float64) / rate
    indices = torch.searchsorted(times, instants + slack, right=True) - 1
    return FrameChoice(indices, rate, _choice_note(n, count, native, rate, target_fps))


def _choice_note(n: int, count: int, native: float, rate: float, target_fps: float) -> str:
    if n < count:
        return f"The clip has {n} frames where {count} were asked: they are repeated evenly, so it moves more slowly."
    if rate > target_fps * 1.01:
        return (
            f"The clip is too short for {count} frames at {target_fps:g} a second: "
            f"all of it is taken, at {rate:.3g} a second."
        )
    if native < target_fps * 0.99:
        return f"The clip has only {native:.3g} frames a second where {target_fps:g} were asked: they are taken as is."
    return ""


# --- writing ---------------------------------------------------------------------------------------------------------


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
    tick = 10 if gif else 1
    ticks = [round(k * 1000 / fps / tick) for k in range(len(pictures) + 1)]
    durations = [max(1, after - before) * tick for before, after in zip(ticks, ticks[1:], strict=False)]
    options = {} if gif else {"quality": 90, "method": 4}
    with atomic_path(path) as part:
        pictures[0].save(part, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)


def write_png(path: PathLike, image: Tensor) -> None:
    """Write one picture [3, H, W], floating in 0..1 or uint8, as PNG, atomically."""
    path, pixels = _output(path, image[None], 1.0, (".png",))
    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    with atomic_path(path) as part:
        Image.fromarray(pixels[0]).save(part, optimize=True, pnginfo=mark)


# --- files -----------------------------------------------------------------------------------------------------------


def _files_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _media_files(source: PathLike | Sequence[PathLike], suffixes: frozenset[str], kind: str) -> list[Path]:
    if not isinstance(source, (str, os.PathLike)):
        if not source:
            raise ValueError(f"No {kind} were given.")
        return [Path(path) for path in source]
    folder = Path(source)
    if not folder.exists():
        raise ValueError(f"{folder} does not exist.")
    if not folder.is_dir():
        return [folder]
    paths = _files_in(folder, suffixes)
    if not paths:
        raise ValueError(f"There are no {kind} in {folder}.")
    return paths


def caption_of(path: Path) -> str | None:
    """The text of the `.txt` beside a photograph or a clip, in one line; None where there is none."""
    file = path.with_suffix(".txt")
    if not file.is_file() or file == path:
        return None
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split()) or None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The caption {file} is not a readable UTF-8 text.") from error


def _mask_path(photo: Path) -> Path | None:
    masks = _files_in(photo.parent / "masks", PHOTO_SUFFIXES)
    return next((mask for mask in masks if mask.stem == photo.stem), None)


def _load_photo(path: Path, mask_path: Path | None, size: Size | None) -> Photo:
    image = load_image(path)
    height, width = image.shape[1:]
    if min(height, width) < SHORTEST_SIDE:
        raise ValueError(f"{path} is {width}x{height} pixels; a photograph needs {SHORTEST_SIDE} at least each way.")
    mask = None if mask_path is None else load_mask(mask_path, (height, width))
    if size is not None:
        image = cover_crop(image, *size)
        if mask is not None:
            mask = (cover_crop(mask, *size) > 0.5).float()
            if not mask.any():
                raise ValueError(f"The mask {mask_path} is empty after the centre crop to {size[1]}x{size[0]}.")
    return Photo(image, mask, caption_of(path), path)


def _frame_times(seconds: list[float]) -> tuple[Tensor, float]:
    """The frames' times from 0 (float64 [F]) and their mean rate; evenly spaced where the file's do not increase."""
    times = torch.tensor(seconds, dtype=torch.float64) - seconds[0]
    steps = times.diff()
    if len(seconds) > 1 and not (steps > 0).all():
        forward = steps[steps > 0]
        period = float(forward.median()) if len(forward) else DEFAULT_FRAME_SECONDS
        times = torch.arange(len(seconds), dtype=torch.float64) * period
    return times, _mean_rate(times)


def _mean_rate(times: Tensor) -> float:
    return (len(times) - 1) / float(times[-1]) if len(times) > 1 else 1.0 / DEFAULT_FRAME_SECONDS


def _frames_of(
    source: Path | BytesIO, start: float = 0.0, seconds: float | None = None
) -> Iterator[tuple[Frame | None, float]]:
    if isinstance(source, Path) and source.suffix.lower() in ANIMATION_SUFFIXES | PHOTO_SUFFIXES:
        return animation_frames(source)
    return video_frames(source, start, seconds)


def _pixels_at(reader: Iterator[tuple[Frame | None, float]], wanted: Tensor, size: Size) -> Tensor:
    """The good frames of these rising indices, cropped, in uint8: [len(wanted), 3, height, width]."""
    good = (frame for frame, _ in reader if frame is not None)
    pixels = torch.empty(len(wanted), 3, *size, dtype=torch.uint8)
    before = -1
    for place, index in enumerate(wanted.tolist()):
        pixels[place] = cover_crop(next(islice(good, index - before - 1, None))(), *size)
        before = index
    reader.close()
    return pixels


def _reading_note(name: str, frames: int, damaged: bool, cut: bool) -> str:
    if cut:
        return f"Only the first {frames} frames of {name} are used: the rest would take too much memory."
    return f"{name} is damaged: {frames} frames of it can be read and are used." if damaged else ""


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
