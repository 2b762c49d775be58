"""Photographs, masks, clips and captions in; videos, animations and pictures out.

Images are float32 in 0..1, [3, H, W] or [N, 3, H, W]; masks are 0 or 1, [1, H, W]. A `Clip` keeps its frames in uint8.
What cannot be read or is of no use raises ValueError in one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..safety.paths import atomic_path
from .decoding import (
    Frame,
    NoPictures,
    animation_frames,
    existing_file,
    folder_frames,
    is_picture,
    picture_tensor,
    read_mask_picture,
    read_picture,
    source_name,
    video_frames,
)
from .folders import PathLike, Say, caption_of, clip_files, frame_files, mask_files, photograph_files, quiet
from .masks import cover_crop, crop_note, crop_subject, fit_mask, mask_to_latent, picture_mask
from .times import FrameChoice, choose_frames, frame_times, thin_out

__all__ = [
    "Clip",
    "FrameChoice",
    "Photo",
    "caption_of",
    "choose_frames",
    "cover_crop",
    "crop_note",
    "crop_subject",
    "find_clips",
    "fit_mask",
    "load_image",
    "load_images",
    "load_mask",
    "mask_to_latent",
    "read_clip",
    "read_motion",
    "thin_out",
    "write_animation",
    "write_png",
    "write_video",
]

Size = tuple[int, int]
"""(height, width) in pixels."""

SHORTEST_SIDE = 16
SOFTWARE = "DreamVideo"  # what a PNG file says that was written here
# uint8 pixels of one clip in memory: about eleven minutes at 256x256 and 8 frames a second.
MAX_CLIP_BYTES = 1 << 30
FOLDER_FPS = 8.0  # of a folder of pictures, which name no rate: the paper's


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


# --- photographs and masks -------------------------------------------------------------------------------------------


def load_image(path: PathLike, say: Say = quiet) -> Tensor:
    """A photograph as [3, H, W] in 0..1, in sRGB: upright, composited on white, its longest side at most 2048 pixels.

    Any mode Pillow knows is read, the first picture of an animation. Raises ValueError for a missing or broken file,
    for one that holds no picture, and for more than 500 megapixels.
    """
    return picture_tensor(read_picture(Path(path), say)).float() / 255.0


def load_mask(path: PathLike, size: Size | None = None) -> Tensor:
    """A mask as [1, H, W] of zeros and ones, one on the subject: white, or opaque where the file's opacity varies.

    `size` is the photograph's: a mask of the same shape but another resolution is resized to it. Raises ValueError
    for one of another shape and for one that is all black.
    """
    mask = picture_mask(read_mask_picture(Path(path)))
    return fit_mask(mask, size or tuple(mask.shape[-2:]), path)


def load_images(
    source: PathLike | Sequence[PathLike], size: Size | None = None, *, with_masks: bool = True, say: Say = quiet
) -> list[Photo]:
    """Photographs of a folder, or the files given, in order, with their captions and, if wanted, their masks.

    The mask of `00.jpg` is `masks/00.*` beside it or `00-masklabel.*`, `00_mask.*` and the like, its caption `00.txt`
    or `00.caption`. With `size` photographs and masks are cropped to it as they are read, so memory does not grow
    with the size of the photographs; the crop keeps what the mask marks as far as it can. `say` hears what is left
    out or cut off. Raises ValueError when there are no photographs, when masks lie there but fit none of them, and
    for unusable files.
    """
    paths = photograph_files(source, say)
    masks = mask_files(paths) if with_masks else dict.fromkeys(paths)
    return [_load_photo(path, masks[path], size, say) for path in paths]


# --- clips -----------------------------------------------------------------------------------------------------------


def read_clip(path: PathLike, size: Size | None = None) -> Clip:
    """A video, an animated gif, webp or png, or a folder of numbered pictures, with its caption from beside it.

    With `size` each frame is scaled and cropped as it is decoded; without, frames keep theirs, upright and with
    square pixels. Frame times are the file's own, so a variable rate survives; a folder's are 8 a second. A clip
    beyond 1 GiB of pixels is read up to there, damaged frames are left out, and `note` says so.
    Raises ValueError for a missing or broken file and for one without frames.
    """
    path = _clip_source(path)
    frames: list[Tensor] = []
    times: list[float] = []
    notes: list[str] = []
    damaged, cut, left = False, False, MAX_CLIP_BYTES
    reader = _frames_of(path, tell=notes.append)
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
    appear, fps = frame_times(times)
    notes.append(_reading_note(path.name, len(frames), damaged, cut))
    return Clip(torch.stack(frames), appear, fps, caption_of(path), path, _joined(notes))


def find_clips(source: PathLike | Sequence[PathLike], frames: int = 1, say: Say = quiet) -> list[Path]:
    """The clips of a folder, or the files given, in order, of which two frames, or one, were found to decode.

    What is to be read for an hour is looked at first. A folder of numbered pictures is a clip. Of several files,
    stills and sound without pictures are left out, which `say` hears. Raises ValueError when there are no clips, for
    files that `read_clip` would refuse, and for a single frame where several are to be taken.
    """
    paths = clip_files(source, say)
    found, refused = [], []
    for path in paths:
        try:
            _look_at(path, frames)
            found.append(path)
        except NoPictures as error:
            refused.append(error)
    if not found:
        raise ValueError(str(refused[0])) from refused[0]
    for error in refused:
        say(f"Left out: {error}")
    return found


def _look_at(path: Path, frames: int) -> None:
    """Raises ValueError for a clip that cannot be read, NoPictures for one that shows no motion where it should."""
    reader = _frames_of(_clip_source(path))
    found = sum(1 for _ in islice((frame for frame, _ in reader if frame is not None), 2))
    reader.close()
    if not found:
        raise ValueError(f"{path} has no frames that can be read.")
    if found < min(frames, 2):
        raise NoPictures(f"{path} holds a single frame, which shows no motion: that takes a video.")


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

    source: as for `read_clip`, or a video's bytes; a folder's pictures are taken as `fps` a second. start, seconds: a
    stretch of a video, None to its end. The file is gone through twice, first for its times alone: no frame that
    `thin_out` leaves out is ever turned into pixels. Of more than 1 GiB of pixels the first are taken; `note` says so,
    and what had to give in thinning out. The caption is left to `caption_of`. Raises ValueError as `read_clip` and
    `choose_frames` do.
    """
    path = None if isinstance(source, BytesIO) else _clip_source(source)
    stretch, name, notes = (path or source, start, seconds, fps), source_name(path or source), []
    seen = [None if frame is None else appears for frame, appears in _frames_of(*stretch, tell=notes.append)]
    times = [appears for appears in seen if appears is not None]
    if not times:
        raise ValueError(f"{name} has no frames that can be read.")
    appear, _ = frame_times(times)
    choice = thin_out(appear, frames, fps)
    kept, places = choice.indices.unique(return_inverse=True)
    while len(kept) > (most := max(1, MAX_CLIP_BYTES // (3 * size[0] * size[1]))):
        appear = appear[: kept[most]]
        choice = thin_out(appear, frames, fps)
        kept, places = choice.indices.unique(return_inverse=True)
    pixels = _pixels_at(_frames_of(*stretch), kept, size)
    notes.append(_reading_note(Path(name).name, len(appear), len(times) < len(seen), len(appear) < len(times)))
    return Clip(
        pixels if len(kept) == len(places) else pixels[places],
        torch.arange(len(places), dtype=torch.float64) / choice.fps,
        choice.fps,
        path=path,
        note=_joined([*notes, choice.note]),
    )


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
    # What is over in 10 ms browsers show for 100.
    tick, shortest = (10, 2) if gif else (1, 11)
    ticks = [round(k * 1000 / fps / tick) for k in range(len(pictures) + 1)]
    durations = [max(shortest, after - before) * tick for before, after in zip(ticks, ticks[1:], strict=False)]
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


def _load_photo(path: Path, mask_path: Path | None, size: Size | None, say: Say) -> Photo:
    image = load_image(path, say)
    height, width = image.shape[1:]
    if min(height, width) < SHORTEST_SIDE:
        raise ValueError(f"{path} is {width}x{height} pixels; a photograph needs {SHORTEST_SIDE} at least each way.")
    mask = None if mask_path is None else load_mask(mask_path, (height, width))
    if size is not None and mask is not None:
        image, mask, lost = crop_subject(image, mask, size, mask_path)
        if note := crop_note(lost, size):
            say(f"{path.name}: {note}")
    elif size is not None:
        image = cover_crop(image, *size)
    return Photo(image, mask, caption_of(path), path)


def _clip_source(path: PathLike) -> Path:
    """A file with something in it, or a folder of frames."""
    path = Path(path)
    if path.is_dir() and not frame_files(path):
        raise ValueError(f"{path} is a folder without numbered pictures; give a video, or a folder of frames.")
    return path if path.is_dir() else existing_file(path)


def _frames_of(
    source: Path | BytesIO,
    start: float = 0.0,
    seconds: float | None = None,
    folder_fps: float = FOLDER_FPS,
    tell: Say = quiet,
) -> Iterator[tuple[Frame | None, float]]:
    if isinstance(source, Path) and source.is_dir():
        return folder_frames(source, folder_fps, tell)
    read = animation_frames if is_picture(source) else video_frames
    return read(source, start, seconds, tell)


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


def _joined(notes: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(note for note in notes if note))


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
