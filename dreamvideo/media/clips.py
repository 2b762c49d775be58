"""Clips: read whole, or as training takes them. A `Clip` keeps its frames in uint8."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from .decoding import Frames, NoPictures, Size, existing_file, source_name
from .folders import PathLike, Say, caption_of, clip_files, clip_masks, frame_files, quiet
from .masks import check_mask_shape, cover_crop
from .pictures import animation_frames, folder_frames, is_picture
from .times import frame_times, thin_out
from .videos import video_frames

# uint8 pixels of one clip in memory: about eleven minutes at 256x256 and 8 frames a second.
MAX_CLIP_BYTES = 1 << 30
FOLDER_FPS = 8.0  # of a folder of pictures, which name no rate: the paper's


@dataclass(frozen=True)
class Taken:
    """What a clip has of its file: the frames' numbers [F], from 0; how many there are, and their (height, width)."""

    numbers: Tensor
    count: int
    size: Size


@dataclass(frozen=True)
class Clip:
    """Frames uint8 [F, 3, H, W], the seconds at which they appear (float64 [F], from 0), their mean rate.

    `note` says in one sentence what was left out while reading, if anything was; `taken` which frames were taken, where
    not all were.
    """

    frames: Tensor = field(repr=False)
    times: Tensor = field(repr=False)
    fps: float
    caption: str | None = None
    path: Path | None = None
    note: str = ""
    taken: Taken | None = None

    def pixels(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """The frames, or those at `indices`, as float32 in 0..1: [F, 3, H, W]."""
        frames = self.frames if indices is None else self.frames[torch.as_tensor(indices)]
        return frames.float() / 255.0


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
        height, width = frames[0].shape[-2:]
        frames = [cover_crop(frame, height, width) for frame in frames]
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


def find_masks(clips: Sequence[Path]) -> list[Path | None]:
    """The mask of each clip, where there is one, of which a frame was found to decode; see `folders.clip_masks`.

    Raises ValueError for one of another length than its clip: before an hour's work rather than in it.
    """
    masks = clip_masks(clips)
    for clip, mask in masks.items():
        if mask is not None:
            _look_at(mask, 1)
            _check_length(mask, _frame_count(mask), _frame_count(clip))
    return [masks[path] for path in clips]


def _frame_count(path: Path) -> int:
    """How many frames a clip has, damaged ones among them."""
    return sum(1 for _ in _frames_of(_clip_source(path)))


def _check_length(mask: object, count: int, wanted: int) -> None:
    if count != wanted:
        raise ValueError(f"The mask {mask} has {count} frames and its clip {wanted}: make both of one length.")


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
    source = source if isinstance(source, BytesIO) else _clip_source(source)
    stretch, name = (source, start, seconds, fps), source_name(source)
    notes: list[str] = []
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
    pixels, full = _pixels_at(_frames_of(*stretch), kept, size)
    good = torch.tensor([number for number, appears in enumerate(seen) if appears is not None])
    notes.append(_reading_note(Path(name).name, len(appear), len(times) < len(seen), len(appear) < len(times)))
    return Clip(
        pixels if len(kept) == len(places) else pixels[places],
        torch.arange(len(places), dtype=torch.float64) / choice.fps,
        choice.fps,
        path=None if isinstance(source, BytesIO) else source,
        note=_joined([*notes, choice.note]),
        taken=Taken(good[choice.indices], len(seen), full),
    )


def read_cover(path: PathLike, taken: Taken, size: Size) -> Tensor:
    """Where a clip's mask is white, in the frames taken of that clip: bool [F, height, width].

    The mask is as long as its clip, frame by frame, and of its shape. Raises ValueError for another length or shape,
    for a damaged file, and for one that is all black.
    """
    path = _clip_source(path)
    wanted, places = taken.numbers.unique(return_inverse=True)
    kept = set(wanted.tolist())
    covers, count = [], 0
    for number, (frame, _) in enumerate(_frames_of(path)):
        count += 1
        if frame is None:
            raise ValueError(f"The mask {path} is damaged: a frame of it cannot be read.")
        if number in kept:
            pixels = frame().float().mean(0, keepdim=True)  # [1, H, W] in 0..255
            check_mask_shape(pixels, taken.size, path, "clip")
            covers.append(cover_crop(pixels, *size)[0] > 127.5)
    _check_length(path, count, taken.count)
    cover = torch.stack(covers)[places]
    if not cover.any():
        raise ValueError(f"The mask {path} is all black; paint white what is not to be learned from.")
    return cover


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
) -> Frames:
    if isinstance(source, Path) and source.is_dir():
        return folder_frames(source, folder_fps, tell)
    read = animation_frames if is_picture(source) else video_frames
    return read(source, start, seconds, tell)


def cover_of(mask: Tensor, taken: Taken, size: Size, name: object) -> Tensor:
    """As `read_cover`, of a mask [N, H, W] in 0..1 that is at hand, N = 1 for one that holds for all frames."""
    if len(mask) not in (1, taken.count):
        raise ValueError(f"The mask {name} has {len(mask)} frames and its clip {taken.count}: give as many, or one.")
    check_mask_shape(mask, taken.size, name, "clip")
    frames = mask.expand(taken.count, -1, -1)[taken.numbers.to(mask.device)].float().cpu()  # [F, H, W]
    return cover_crop(frames[:, None], *size)[:, 0] > 0.5


def _pixels_at(reader: Frames, wanted: Tensor, size: Size) -> tuple[Tensor, Size]:
    """The good frames of these rising indices, cropped, in uint8: [len(wanted), 3, height, width]; their full size."""
    good = (frame for frame, _ in reader if frame is not None)
    pixels = torch.empty(len(wanted), 3, *size, dtype=torch.uint8)
    before, full = -1, size
    for place, index in enumerate(wanted.tolist()):
        frame = next(islice(good, index - before - 1, None))()
        pixels[place], full = cover_crop(frame, *size), (frame.shape[-2], frame.shape[-1])
        before = index
    reader.close()
    return pixels, full


def _reading_note(name: str, frames: int, damaged: bool, cut: bool) -> str:
    if cut:
        return f"Only the first {frames} frames of {name} are used: the rest would take too much memory."
    return f"{name} is damaged: {frames} frames of it can be read and are used." if damaged else ""


def _joined(notes: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(note for note in notes if note))


def file_digest(path: Path) -> str:
    """Of a clip's file, or of the frames of its folder."""
    found = hashlib.blake2b(digest_size=16)
    for each in frame_files(path) if path.is_dir() else [path]:
        with open(each, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()
